/**
 * Speaks to a unix socket as another user: what comes on standard input goes there, the answer to standard output.
 *
 *     node scripts/attack/as-user.ts UID PATH
 */
import { connect } from "node:net";

const [uid = "", path = ""] = process.argv.slice(2);
if (uid !== "0") {
  process.setgroups?.([]);
  process.setgid?.(Number(uid));
  process.setuid?.(Number(uid));
}
const socket = connect({ path });
socket.on("error", () => process.exit(0));
socket.setTimeout(3000, () => process.exit(0));
process.stdin.pipe(socket, { end: false });
socket.on("data", (chunk: Buffer) => {
  process.stdout.write(chunk, () => process.exit(0));
});
socket.on("close", () => process.exit(0));
