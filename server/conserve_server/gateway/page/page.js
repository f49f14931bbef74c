// The live page: reads GET /v1/events (conserve_sdk/protocol.py, Update) and draws it.
// All that it shows is text from outside: it becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const KEY = "conserve-key";
const SHOWN = 60;
const LANE = 26;
const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const OVER = new Set(["ended", "expired"]);

const at = (id) => document.getElementById(id);
const lanes = new Map(); // name → what is known of one conversation
let engines = [];
let waiting = 0;
let ahead = 0; // gateway's monotonic clock less ours, seconds
let pausedAt = null;
let opened = null;

const seconds = () => performance.now() / 1000;
const now = () => pausedAt ?? seconds() + ahead;

// -- elements ---------------------------------------------------------------------------------

function element(tag, { text, name, ...rest } = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  for (const [key, value] of Object.entries(rest)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function pair(term, value, name) {
  return element("div", { name }, [element("dt", { text: term }), element("dd", { text: value })]);
}

function bar(kind, from, to, title) {
  const [height, y] = kind === "gap" ? [3, 11.5] : kind === "wait" ? [8, 9] : kind === "failed" ? [20, 3] : [16, 5];
  const rect = document.createElementNS(SVG, "rect");
  const width = kind === "failed" ? 0.4 : Math.max(to - from, 0.15);
  const shape = { x: `${from}%`, y, width: `${width}%`, height, rx: 1.5, class: kind };
  for (const [key, value] of Object.entries(shape)) rect.setAttribute(key, value);
  const told = document.createElementNS(SVG, "title");
  told.textContent = title;
  rect.append(told);
  return rect;
}

// -- numbers for people -----------------------------------------------------------------------

const blank = (value) => value === null || value === undefined;

function time(value) {
  if (blank(value)) return "–";
  if (value < 0.0995) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 99.5) return `${value.toFixed(2)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

function count(value) {
  return blank(value) ? "–" : value.toLocaleString("en");
}

function short(value) {
  if (blank(value)) return "–";
  if (value < 1e4) return count(value);
  return value < 1e6 ? `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)}k` : `${(value / 1e6).toFixed(1)}M`;
}

const joules = (value) => (blank(value) ? "–" : `${value < 100 ? value.toFixed(2) : Math.round(value)} J`);

// -- the stream -------------------------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function follow() {
  for (let tries = 0; ; tries = Math.min(tries + 1, RETRY_MS.length - 1)) {
    try {
      const answer = await fetch("v1/events", { headers: headers(), cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) await login(sessionStorage.getItem(KEY) !== null);
      else if (answer.ok) {
        tries = -1;
        await read(answer.body.getReader());
      }
    } catch {
      // the gateway is gone, or going: the status line says so
    }
    say("lost", "connection lost, trying again");
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.max(tries, 0)]));
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  let isFirst = true;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (!data) continue;
      take(JSON.parse(data.slice(6)), isFirst);
      isFirst = false;
    }
  }
}

function say(state, text) {
  at("link").dataset.state = state;
  if (at("link").textContent !== text) at("link").textContent = text;
}

const nameOf = (tenant, id, model) => JSON.stringify([tenant, id, model]);

function take(update, isFirst) {
  ahead = update.now_s - seconds();
  waiting = update.waiting_turns;
  if (isFirst) lanes.clear();
  if (update.engines) engines = update.engines;
  for (const [tenant, id, model] of update.gone) lanes.delete(nameOf(tenant, id, model));
  for (const each of update.conversations) {
    const { turns, ...report } = each.report;
    const name = nameOf(report.tenant ?? "default", report.id, report.model);
    const known = lanes.get(name) ?? { name, turns: new Map() };
    for (const turn of turns) known.turns.set(turn.index, turn);
    Object.assign(known, { report, first: each.first_arrival_s, running: each.running, tools: each.tool_count });
    lanes.set(name, known);
  }
  say("live", "live");
  if (pausedAt === null) draw();
  if (opened && lanes.has(opened)) detail();
}

function login(isWrong) {
  at("login-why").textContent = isWrong
    ? "The gateway does not know this key as its administrator's."
    : "This gateway shows its conversations to its administrator only.";
  say("lost", "a key is needed");
  at("key").value = "";
  at("login").showModal();
  return new Promise((done) => {
    at("login-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, at("key").value.trim());
      at("login").close();
      done();
    };
  });
}

// -- engines ----------------------------------------------------------------------------------

function drawEngines() {
  at("engines-empty").hidden = engines.length > 0;
  at("emulated").hidden = !engines.some((engine) => engine.emulated);
  at("engines").replaceChildren(...engines.map(card));
}

function card(engine) {
  const load = engine.up ? `${engine.running} running, ${engine.waiting} waiting` : "down";
  const head = element("h3", {}, [
    element("b", { text: engine.name }),
    element("span", { text: engine.role }),
    element("span", { text: load, name: "load" }),
  ]);
  const made = element("article", { name: engine.up ? "engine" : "engine down" }, [head]);
  if (engine.up && engine.kv_capacity_tokens) made.append(meter(engine), facts(engine));
  return made;
}

function meter(engine) {
  const capacity = engine.kv_capacity_tokens;
  // A budget may be larger than the KV: the bar then ends with the budget.
  const whole = Math.max(capacity, engine.kv_budget_tokens ?? 0);
  const share = (tokens) => `${Math.min(100, (100 * tokens) / whole)}%`;
  const used = blank(engine.kv_usage) ? null : Math.round(engine.kv_usage * capacity);
  const holds = !blank(engine.kv_reserved_tokens);
  const told = [
    holds ? `${count(engine.kv_reserved_tokens)} tokens reserved` : "",
    `${count(used)} in use`,
    holds ? `budget ${count(engine.kv_budget_tokens)}` : "",
    `capacity ${count(capacity)}`,
  ].filter(Boolean);
  const made = element("div", { name: "kv", role: "img", "aria-label": `KV cache: ${told.join(", ")}` });
  const part = (name, put) => {
    const piece = element("i", { name });
    put(piece.style);
    made.append(piece);
  };
  if (whole > capacity) part("beyond", (style) => (style.left = share(capacity)));
  const isOver = engine.kv_reserved_tokens > engine.kv_budget_tokens;
  if (holds) part(isOver ? "reserved over" : "reserved", (style) => (style.width = share(engine.kv_reserved_tokens)));
  if (used !== null) part("used", (style) => (style.width = share(used)));
  if (holds && engine.kv_budget_tokens) part("budget", (style) => (style.left = share(engine.kv_budget_tokens)));
  return made;
}

function facts(engine) {
  const used = blank(engine.kv_usage) ? "–" : `${(engine.kv_usage * 100).toFixed(1)} %`;
  const list = [];
  if (!blank(engine.kv_reserved_tokens)) {
    list.push(pair("reserved", short(engine.kv_reserved_tokens), "of-reserved"));
    list.push(pair("budget", short(engine.kv_budget_tokens), "of-budget"));
  }
  list.push(pair("in use", used, "of-used"), pair("capacity", short(engine.kv_capacity_tokens), "of-capacity"));
  if (engine.conversations) list.push(pair("conversations", count(engine.conversations), "of-none"));
  return element("dl", {}, list);
}

// -- lanes ------------------------------------------------------------------------------------

// A turn's steps as [kind, from, to], seconds from its conversation's first arrival.
function steps(turn, end) {
  const moves = turn.path === "remote-prefill" || turn.path === "remote-append";
  const start = turn.started_s ?? 0;
  const placed = blank(turn.wait_s) ? end : start + turn.wait_s;
  const found = [["wait", start, placed]];
  if (blank(turn.wait_s)) return found;
  const first = blank(turn.ttft_s) ? null : start + turn.ttft_s;
  if (!moves) {
    const own = first ?? (turn.phase === "decode" && turn.streamed ? end : placed);
    return [...found, ["prefill", placed, own], ["decode", own, end]];
  }
  const prefilled = blank(turn.prefill_s) ? end : placed + turn.prefill_s;
  found.push(["prefill", placed, prefilled]);
  const unseen = turn.streamed ? end : prefilled; // the first token of a whole answer is not seen
  const there = blank(turn.transfer_s) ? (first ?? unseen) : prefilled + turn.transfer_s;
  return [...found, ["transfer", prefilled, there], ["decode", there, end]];
}

function segments(lane, until) {
  const ended = [...lane.turns.values()].filter((turn) => !blank(turn.started_s));
  const all = [...ended, ...lane.running].sort((a, b) => a.started_s - b.started_s);
  const found = [];
  let last = null;
  for (const turn of all) {
    const end = blank(turn.duration_s) ? until - lane.first : turn.started_s + turn.duration_s;
    if (last !== null && turn.started_s > last) found.push(["gap", last, turn.started_s, "tool gap"]);
    for (const [kind, from, to] of steps(turn, end)) {
      if (to > from) found.push([kind, from, to, `turn ${turn.index}: ${kind}`]);
    }
    if (turn.outcome && turn.outcome !== "completed") found.push(["failed", end, end, `turn ${turn.index} ${turn.outcome}`]);
    last = Math.max(last ?? 0, end);
  }
  if (last !== null && !lane.running.length && !OVER.has(lane.report.state)) {
    found.push(["gap", last, until - lane.first, "tool gap"]);
  }
  return found;
}

/** Where a conversation that no decoder answered has its turns, if it has any. */
function whereElse({ id, tenant, model }) {
  const isBranch = ({ report }) => report.parent_id === id && report.tenant === tenant && report.model === model;
  const branches = [...lanes.values()].filter(isBranch).length;
  return branches ? `in ${branches} branch${branches === 1 ? "" : "es"}` : "not placed";
}

function drawLane(lane, until, span) {
  const row = (lane.row ??= newRow(lane));
  const { report } = lane;
  row.item.className = OVER.has(report.state) ? "lane over" : "lane";
  row.id.textContent = report.id;
  row.where.textContent = [report.agent, report.decoder ?? whereElse(report)].filter(Boolean).join(" · ");
  row.state.textContent = report.state;
  row.state.className = `state ${report.state.replace(/[^a-z-]/g, "")}`;
  // Not how many are here: the first ones of a long conversation are forgotten.
  const turns = Math.max(0, ...lane.turns.keys(), ...lane.running.map((turn) => turn.index));
  row.count.textContent = `${turns} turn${turns === 1 ? "" : "s"}`;
  const left = until - span;
  const drawn = [];
  for (const [kind, from, to, title] of segments(lane, until)) {
    const [a, b] = [from + lane.first - left, to + lane.first - left];
    if (b < 0 || a > span) continue;
    const title2 = kind === "failed" ? title : `${title}, ${time(to - from)}`;
    drawn.push(bar(kind, (100 * Math.max(a, 0)) / span, (100 * Math.min(b, span)) / span, title2));
  }
  row.svg.replaceChildren(...drawn);
  return row.item;
}

function newRow(lane) {
  const [id, where, state, turns] = ["b", "span", "span", "span"].map((tag) => element(tag));
  [where.className, turns.className] = ["where", "count"];
  const button = element("button", { type: "button" }, [id, state, where, turns]);
  button.addEventListener("click", () => open(lane.name));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("height", LANE);
  svg.setAttribute("aria-hidden", "true");
  return { item: element("li", {}, [button, svg]), id, where, state, count: turns, svg };
}

function matches(lane, wanted) {
  const { id, agent, decoder, state, model, tenant } = lane.report;
  return !wanted || [id, agent, decoder, state, model, tenant].some((text) => text?.toLowerCase().includes(wanted));
}

function draw() {
  const until = now();
  const span = Number(at("window").value);
  const wanted = at("find").value.trim().toLowerCase();
  const all = [...lanes.values()].sort((a, b) => b.first - a.first || (a.name < b.name ? -1 : 1));
  const found = all.filter((lane) => matches(lane, wanted));
  const items = found.slice(0, SHOWN).map((lane) => drawLane(lane, until, span));
  place(at("lanes"), items);
  at("lanes-empty").hidden = all.length > 0;
  at("more").hidden = found.length <= SHOWN && (found.length > 0 || !all.length);
  at("more").textContent = found.length ? `${found.length - SHOWN} older ones are not shown` : "None matches.";
  drawAxis(span, items.length > 0);
  drawEngines();
  const live = all.filter((lane) => !OVER.has(lane.report.state));
  at("total-live").textContent = count(live.length);
  at("total-running").textContent = count(live.reduce((sum, lane) => sum + lane.running.length, 0));
  at("total-waiting").textContent = count(waiting);
}

// Puts the rows in order without taking the focus from one that stays.
function place(list, items) {
  items.forEach((item, index) => {
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

function drawAxis(span, isShown) {
  at("axis").hidden = !isShown;
  const label = (ago) => (ago === 0 ? "now" : ago < 60 ? `−${ago} s` : `−${ago / 60} min`);
  const ticks = [1, 2 / 3, 1 / 3, 0].map((share) => {
    const tick = element("span", { text: label(Math.round(span * share)) });
    tick.style.left = `${100 * (1 - share)}%`;
    return tick;
  });
  at("axis").replaceChildren(element("div", { name: "ticks" }, ticks));
}

// -- one conversation -------------------------------------------------------------------------

const COLUMNS = [
  ["turn", (t) => count(t.index)],
  ["path", (t) => t.path ?? "–", "text"],
  ["engines", (t) => [t.prefiller, t.decoder].filter(Boolean).join(" → ") || "–", "text"],
  ["prompt", (t) => count(t.prompt_tokens)],
  ["cached", (t) => count(t.cached_tokens)],
  ["output", (t) => count(t.completion_tokens)],
  ["wait", (t) => time(t.wait_s)],
  ["prefill", (t) => time(t.prefill_s)],
  ["transfer", (t) => time(t.transfer_s)],
  ["TTFT", (t) => time(t.ttft_s)],
  ["duration", (t) => time(t.duration_s)],
  ["energy", (t) => joules(energyOf(t)), "", (turns) => turns.some((t) => !blank(energyOf(t)))],
  ["outcome", (t) => t.outcome ?? t.phase, "text"],
  ["error", (t) => t.error ?? "", "text bad", (turns) => turns.some((t) => t.error)],
];

const energyOf = (turn) => turn.energy_j ?? turn.energy?.energy_j ?? turn.energy?.total_j;

function open(name) {
  opened = name;
  at("tools-part").hidden = true;
  detail();
  at("detail").showModal();
  showTools(lanes.get(name).report);
}

function detail() {
  const { report, turns, running, tools } = lanes.get(opened);
  at("detail-title").textContent = report.id;
  const all = [...turns.values(), ...running].sort((a, b) => a.index - b.index);
  at("facts").replaceChildren(...told(report, tools).map(([term, value]) => pair(term, value)));
  const columns = COLUMNS.filter(([, , , isUsed]) => !isUsed || isUsed(all));
  at("turn-head").replaceChildren(...columns.map(([text, , name]) => element("th", { text, name, scope: "col" })));
  const row = (turn) => element("tr", {}, columns.map(([, show, name]) => element("td", { text: show(turn), name })));
  at("turns").replaceChildren(...all.slice(-200).map(row));
}

function told(report, tools) {
  const energy = report.energy;
  const known = typeof energy === "string" ? energy.split(":")[0] : joules(energyOf(report));
  return [
    ["state", report.state],
    ["agent", report.agent ?? "–"],
    ["model", report.model ?? "–"],
    ["decoder", report.decoders.join(" → ") || "–"],
    ["KV transfers", count(report.kv_transfers)],
    ["KV reserved", `${count(report.reserved_kv_tokens)} tokens`],
    ["TTFET", time(report.ttfet_s)],
    ["tool calls", count(tools)],
    ["energy", known],
    ...(report.tenant ? [["tenant", report.tenant]] : []),
    ...(report.parent_id ? [["parent", report.parent_id]] : []),
    ...(report.synthetic ? [["named by", "the gateway"]] : []),
  ];
}

async function showTools({ id, model, tenant }) {
  const query = new URLSearchParams({ ...(model && { model }), ...(tenant && { tenant }) });
  const answer = await fetch(`v1/conversations/${encodeURIComponent(id)}?${query}`, { headers: headers() });
  if (!answer.ok) return;
  const { tools } = await answer.json();
  const line = (tool) => `${tool.name}: ${blank(tool.duration_s) ? "running" : time(tool.duration_s)}`;
  at("tools").replaceChildren(...tools.slice(-200).map((tool) => element("li", { text: line(tool) })));
  at("tools-part").hidden = tools.length === 0;
}

// -- what people do ---------------------------------------------------------------------------

at("pause").addEventListener("click", () => {
  pausedAt = pausedAt === null ? now() : null;
  at("pause").setAttribute("aria-pressed", String(pausedAt !== null));
  at("pause").textContent = pausedAt === null ? "Pause" : "Go on";
  draw();
});
at("find").addEventListener("input", draw);
at("window").addEventListener("change", draw);
at("close").addEventListener("click", () => at("detail").close());
at("detail").addEventListener("close", () => (opened = null));
at("login").addEventListener("cancel", (event) => event.preventDefault());
at("lanes").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const buttons = [...at("lanes").querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});

setInterval(() => {
  if (pausedAt === null && lanes.size && !document.hidden) draw();
}, 500);
follow();
