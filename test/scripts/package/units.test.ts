/** The packages' units: understood by systemd 219 (EL7's), and in the order that storage of a hypervisor needs. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { repository } from "../../../scripts/lib/repository.ts";

/** What systemd 219 knows, as its manual pages list it, as far as anybody would want it here. */
const known: Readonly<Record<string, readonly string[]>> = {
  Unit: [
    ["Description", "Documentation", "Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Conflicts"],
    ["Before", "After", "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "RequiresMountsFor"],
    ["StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "DefaultDependencies", "JobTimeoutSec"],
    ["ConditionPathExists", "ConditionPathIsDirectory", "ConditionFileIsExecutable", "AssertPathExists"],
  ].flat(),
  Service: [
    ["Type", "RemainAfterExit", "PIDFile", "ExecStart", "ExecStartPre", "ExecStartPost", "ExecReload"],
    ["ExecStop", "ExecStopPost", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "TimeoutSec"],
    ["WatchdogSec", "Restart", "SuccessExitStatus", "RestartPreventExitStatus", "NotifyAccess"],
    ["StartLimitInterval", "StartLimitBurst", "WorkingDirectory", "User", "Group", "Nice", "OOMScoreAdjust"],
    ["UMask", "Environment", "EnvironmentFile", "StandardOutput", "StandardError", "SyslogIdentifier"],
    ["LimitCORE", "LimitNOFILE", "LimitMEMLOCK", "KillMode", "KillSignal", "SendSIGKILL", "MemoryLimit"],
  ].flat(),
  Install: ["Alias", "WantedBy", "RequiredBy", "Also"],
};

const values: Readonly<Record<string, RegExp>> = {
  Type: /^(?:simple|forking|oneshot|dbus|notify|idle)$/,
  Restart: /^(?:no|on-success|on-failure|on-abnormal|on-watchdog|on-abort|always)$/,
  KillMode: /^(?:control-group|process|mixed|none)$/,
  NotifyAccess: /^(?:none|main|all)$/,
  // No "+", "!" or ":" before a path.
  ExecStart: /^-?\//,
  ExecStartPre: /^-?\//,
  ExecStop: /^-?\//,
};

type Line = { readonly section: string; readonly key: string; readonly value: string };

function linesOf(path: string): readonly Line[] {
  let section = "";
  return readFileSync(path, "utf8")
    .split("\n")
    .flatMap((text) => {
      section = /^\[(\w+)\]$/.exec(text)?.[1] ?? section;
      const [, key, value] = /^([^#=[]+)=(.*)$/.exec(text) ?? [];
      return key === undefined || value === undefined ? [] : [{ section, key, value }];
    });
}

const root = join(repository, "packaging/root");
const files = readdirSync(root, { recursive: true, encoding: "utf8" })
  .filter((path) => path.includes("systemd/system/") && /\.(?:service|conf)$/.test(path))
  .toSorted();
const units = new Map(
  files.map((path) => [path.slice(path.indexOf("system/") + 7), linesOf(join(root, path))]),
);

await t.test("package: units say nothing that systemd 219 does not know", async (t) => {
  t.ok(units.size >= 4, "units were found");
  const unknown = Array.from(units).flatMap(([name, lines]) =>
    lines
      .filter(({ section, key, value }) => {
        return known[section]?.includes(key) !== true || values[key]?.test(value) === false;
      })
      .map(({ section, key, value }) => `${name} [${section}] ${key}=${value}`),
  );
  t.same(unknown, []);
});

function words(unit: string, wanted: string): readonly string[] {
  const lines = units.get(unit) ?? [];
  return lines.filter(({ key }) => key === wanted).flatMap(({ value }) => value.split(" "));
}

await t.test("package: XAPI finds storage ready as it starts, and guests stop before it does", async (t) => {
  for (const unit of ["weft.service", "weft-holder.service", "weft-agent.service"]) {
    for (const later of ["attach-static-vdis.service", "xapi.service"])
      t.ok(words(unit, "Before").includes(later), `${unit} is before ${later}`);
  }
  for (const domains of ["xapi-domains.service.d/weft.conf", "libvirt-guests.service.d/weft.conf"])
    t.same(words(domains, "After"), ["weft.service", "weft-holder.service", "weft-agent.service"]);
  // What is ordered after them waits until they serve.
  for (const unit of ["weft.service", "weft-agent.service"]) t.same(words(unit, "Type"), ["notify"]);
});

await t.test("package: no unit takes another one down with it", async (t) => {
  for (const [name] of units) {
    for (const key of ["Requires", "BindsTo", "PartOf", "Conflicts", "Requisite"])
      t.same(words(name, key), [], `${name} ${key}`);
  }
  t.same(words("weft-agent.service", "KillMode"), ["process"], "etcd lives on when the agent is restarted");
});

// Read by udev of EL7 (219) as well: what it does not know it skips with the rest of the line.
await t.test(
  "package: udev keeps the host from looking into guests' volumes, and from nothing else",
  async (t) => {
    const name = "12-weft.rules";
    const text = readFileSync(join(root, "common/usr/lib/udev/rules.d", name), "utf8");
    t.ok(
      name > "11-" && name < "13-dm-disk.rules",
      "after what names a mapped device, before what probes it",
    );
    const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
    const labels = lines.flatMap((line) => /^LABEL="(\w+)"$/.exec(line)?.[1] ?? []);
    for (const line of lines) {
      t.match(line, /^(?:[A-Z]+(?:\{\w+\})?(?:==|!=|=|:=)"[^"]*"(?:, )?)+$/, line);
      const [, goto] = /GOTO="(\w+)"/.exec(line) ?? [];
      if (goto !== undefined) t.ok(labels.includes(goto), line);
    }
    const glob = (pattern: string): RegExp =>
      new RegExp(`^${pattern.replaceAll("?", ".").replaceAll("*", ".*")}$`);
    const [, taken = "", left = ""] = /DM_NAME\}=="([^"]+)", ENV\{DM_NAME\}!="([^"]+)"/.exec(text) ?? [];
    const isGuests = (device: string): boolean => glob(taken).test(device) && !glob(left).test(device);
    t.ok(isGuests("weft--1a2b3c4d-v0123--r1"));
    for (const other of ["weft--1a2b3c4d-meta", "XSLocalEXT--1-1", "weft--backup-lv"])
      t.notOk(isGuests(other), other);
  },
);
