// Stays connected and misses nothing. A ticket comes from the page's own backend, or from a node that leaves (goaway): with it the
// next connection is open before this one ends. Waits are random, so that a crowd that was dropped does not come back at once.
export function listen(onMessage, onState = () => {}, onMissed = () => {}) {
  let failures = 0, current, inbox = ""; // where this page is: in its inbox,
  const channels = new Map(), seen = new Set(); // in channels; ids of the latest messages
  const fetchTicket = () => fetch("/ticket", { method: "POST", signal: AbortSignal.timeout(10_000) });

  function open(url, ticket) {
    const query = new URLSearchParams({ ticket, refuse: "close" });
    if (inbox) query.set("since", inbox);
    if (channels.size) query.set("channels", Array.from(channels, (place) => place.join("@")).join());
    const old = current, socket = (current = new WebSocket(`${url}?${query}`));
    let slot; // when the node wants us back, if it said so
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.type === "unsubscribed") channels.delete(frame.channel);
      else if (frame.channel && frame.position) channels.set(frame.channel, frame.position);
      else if (frame.position && frame.type !== "published") inbox = frame.position;
      if (frame.type === "message" && !seen.has(frame.id)) seen.add(frame.id), onMessage(frame);
      if (seen.size > 1_000) seen.delete(seen.values().next().value);
      if (frame.type === "gap" || frame.recovered === false) onMissed(); // fetch your state anew
      if (frame.type === "welcome") (failures = 0), old?.close(), onState("connected");
      if (frame.type === "refused" && frame.after_ms) slot = Date.now() + frame.after_ms;
      if (frame.type === "goaway") setTimeout(() => move(frame.ticket), frame.after_ms);
    };
    const move = (next) => socket === current && (next ? open(url, next) : connect());
    socket.onclose = ({ code }) => {
      if (socket !== current) return; // another one has taken its place
      code >= 4500 && code < 5000 ? onState(`stopped: ${code}`) : again(slot);
    };
  }
  function again(slot) {
    const backoff = Math.random() * Math.min(30_000, 1_000 * 2 ** failures++);
    onState("waiting");
    setTimeout(connect, slot === undefined ? backoff : Math.max(0, slot - Date.now()));
  }
  async function connect() {
    const answer = await fetchTicket().catch(() => ({}));
    if (answer.status === 401) return onState("logged out");
    const { url, ticket } = answer.ok ? await answer.json().catch(() => ({})) : {};
    ticket ? open(url, ticket) : again();
  }
  connect();
}
