// Stays connected: a fresh ticket from the page's own backend for each connection, and a wait before the next one that is
// random, so that a crowd that was dropped together does not come back together, unless the node says when.
export function listen(onMessage, onState = () => {}, onMissed = () => {}) {
  let failures = 0;
  let since = ""; // where this page is in its inbox

  async function connect() {
    let slot; // when the node wants us back, if it said so
    const again = () => {
      const backoff = Math.random() * Math.min(30_000, 1_000 * 2 ** failures++);
      const wait = slot === undefined ? backoff : Math.max(0, slot - Date.now());
      onState("waiting");
      setTimeout(connect, wait);
    };
    try {
      const answer = await fetch("/ticket", { method: "POST", signal: AbortSignal.timeout(10_000) });
      if (answer.status === 401) return onState("logged out");
      if (!answer.ok) return again();
      const { url, ticket } = await answer.json();
      const socket = new WebSocket(`${url}?ticket=${ticket}&refuse=close${since}`);
      socket.onmessage = ({ data }) => {
        const frame = JSON.parse(data);
        const inbox = frame.position && !frame.channel && frame.type !== "published";
        if (inbox) since = `&since=${frame.position}`;
        if (frame.type === "message") onMessage(frame);
        if (frame.type === "gap" || frame.recovered === false) onMissed(); // fetch your state anew
        if (frame.type === "welcome") {
          failures = 0;
          onState("connected");
        }
        if (frame.after_ms !== undefined) slot = Date.now() + frame.after_ms; // refused, goaway
        if (frame.type === "goaway") setTimeout(() => socket.close(), frame.after_ms);
      };
      socket.onclose = ({ code }) => (code >= 4500 && code < 5000 ? onState(`stopped: ${code}`) : again());
    } catch {
      again();
    }
  }
  connect();
}
