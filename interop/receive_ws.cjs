// Connects with the Node library `ws` and prints each text frame as a line; ends when its stdin does.
// Usage: receive_ws.cjs URL [SUBPROTOCOL…]
"use strict";
const WebSocket = require("ws");

const [url, ...subprotocols] = process.argv.slice(2);
const socket = new WebSocket(url, subprotocols);
let leaving = false;

socket.on("open", () => {
  if (subprotocols.length > 0 && socket.protocol !== subprotocols[0]) {
    fail(`asked for ${subprotocols[0]}, was answered ${socket.protocol}`);
  }
});
socket.on("message", (data, binary) => {
  if (binary) fail("a binary frame");
  console.log(data.toString());
});
socket.on("error", (error) => fail(error.message));
socket.on("close", (code, reason) => {
  if (!leaving) fail(`closed by the node: ${code} ${reason}`);
  console.log(JSON.stringify({ type: "closed", code }));
  process.exit(0);
});
process.stdin.on("end", () => {
  leaving = true;
  socket.close(1000);
});
process.stdin.resume();

function fail(reason) {
  console.error(reason);
  process.exit(1);
}
