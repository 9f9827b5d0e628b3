/**
 * systemctl's double, as far as an agent asks it for something: `restart weft-holder.service`.
 *
 * Must always hold: the holder of that run directory has ended before the next one starts, with the same words.
 */
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** `ROOT/usr/bin/systemctl` restarts the holder of this run directory from now on. */
export function installSystemctl(root: string, runDir: string): void {
  const program = join(root, "usr/bin/systemctl");
  mkdirSync(join(root, "usr/bin"), { recursive: true });
  const words = join(root, "holder.words");
  const script = `#!/bin/sh
[ "$*" = "restart weft-holder.service" ] || { echo "no such command: $*" >&2; exit 1; }
for each in /proc/[0-9]*; do
  [ "$(cat "$each/comm" 2>/dev/null)" = weft-holder ] || continue
  tr '\\0' '\\n' <"$each/cmdline" | grep -qxF '${runDir}' || continue
  pid=\${each#/proc/}
  cat "$each/cmdline" >'${words}'
  kill "$pid"
  while [ "$(cat "$each/comm" 2>/dev/null)" = weft-holder ] && ! grep -q '^State:.Z' "$each/status"; do sleep 0.02; done
  setsid xargs -0 -a '${words}' env >>'${root}/holder.log' 2>&1 </dev/null &
  exit 0
done
echo "Unit weft-holder.service is not running." >&2
exit 1
`;
  writeFileSync(program, script);
  chmodSync(program, 0o755);
}
