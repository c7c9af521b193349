// Stays connected by server-sent events. The browser comes back by itself, with the id of the last event, and misses nothing.
// Only where that is refused (the session is over, or somebody ended it) a new ticket is fetched, and the position of the
// last message says where to go on.
export function listen(onMessage, onState = () => {}) {
  let failures = 0;
  let position; // where in the inbox we are

  async function connect() {
    const again = () => {
      onState("waiting");
      setTimeout(connect, Math.random() * Math.min(30_000, 1_000 * 2 ** failures++));
    };
    try {
      const answer = await fetch("/ticket", { method: "POST", signal: AbortSignal.timeout(10_000) });
      if (answer.status === 401) return onState("logged out");
      if (!answer.ok) return again();
      const { url, ticket } = await answer.json();
      const at = new URL(url.replace(/^ws(.*)\/ws$/, "http$1/sse"));
      at.searchParams.set("ticket", ticket);
      if (position) at.searchParams.set("since", position);
      const events = new EventSource(at);
      events.onmessage = ({ data }) => {
        const frame = JSON.parse(data);
        if (frame.position && !frame.channel) position = frame.position;
        if (frame.type === "message") onMessage(frame);
        if (frame.type === "welcome") {
          failures = 0;
          onState("connected");
        }
      };
      events.onerror = () => (events.readyState === EventSource.CLOSED ? again() : onState("waiting"));
    } catch {
      again();
    }
  }
  connect();
}
