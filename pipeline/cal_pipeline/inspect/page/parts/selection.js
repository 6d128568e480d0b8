// --- the selection: what is marked, or else what is shown; as ids, or as a command ------------------------------------

const FILE = "selection.csv";

function fitsRule(sample) {
  if (settings.limit === "") return true;
  const value = sample.numbers[settings.rule];
  if (value === null) return false;
  return settings.side === "below" ? value < Number(settings.limit) : value > Number(settings.limit);
}

const marked = () => cards.filter(({ mark }) => mark.checked);

function marksChanged() {
  settings.marks = marked().map(({ sample }) => sample.row).join(".");
  drawSelection();
  writeAddressSoon();
}

function setMarks() {
  const rows = new Set(settings.marks.split("."));
  for (const card of cards) card.mark.checked = rows.has(String(card.sample.row));
}

const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const sql = (text) => `'${text.replaceAll("'", "''")}'`;
const field = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

// The condition that takes these rows, or null where only their ids tell them.
function condition() {
  const { search, why, status, source, limit, rule, side } = settings;
  if (marked().length || search.trim() || why || (source && !data.filter.source)) return null;
  const parts = [];
  if (status) parts.push(`status = ${sql(status)}`);
  if (source) parts.push(`source = ${sql(source)}`);
  if (limit !== "") parts.push(`${rule} ${side === "below" ? "<" : ">"} ${Number(limit)}`);
  return parts.length ? parts.join(" AND ") : null;
}

// Whether every row of the data set that the rule takes is on this page.
function isWhole() {
  if (cards.length === data.rows) return true;
  const order = { [`${MIN} below`]: "min", [`${MEAN} below`]: "mean", [`${MEAN} above`]: "-mean" }[`${settings.rule} ${settings.side}`];
  const leading = settings.limit !== "" && order ? data.leading[order] : null;
  if (!leading || leading.last === null) return false;
  return settings.side === "below" ? Number(settings.limit) <= leading.last : Number(settings.limit) >= leading.last;
}

function command() {
  const rule = condition();
  const { annotated, ids_from: idsFrom } = data.filter;
  const words = ["cal-inspect", "filter", ...annotated.map((place) => shell(place)), rule === null ? "TRUE" : shell(rule)];
  if (data.score.name !== "delta_logit") words.push("--score", data.score.name);
  if (rule === null) words.push("--ids_from", FILE);
  else if (idsFrom !== null) words.push("--ids_from", shell(idsFrom));
  const ends = { ids: ["--ids", "chosen.csv"], drop: ["--drop", "--output", "clean/"], keep: ["--output", "chosen/"] };
  return [...words, ...ends[settings.use]].join(" ");
}

function drawSelection() {
  const marks = marked();
  const rows = marks.length ? marks : shown;
  byId("chosen").textContent = marks.length ? `Selected: the ${counted(marks.length, "marked sample")}.`
    : `Selected: the ${counted(rows.length, "sample")} shown. Marks (checkbox, or the key M) select single ones.`;
  byId("clear").disabled = !marks.length;
  byId("save").disabled = !rows.length;
  byId("command").textContent = command();
  byId("exact").textContent = condition() === null ? `It reads the ids: save ${FILE} first, beside where you run it.`
    : isWhole() ? "It selects exactly these rows." : "It selects these rows, and those of the same kind that are not on this page.";
}

function save() {
  const rows = (marked().length ? marked() : shown).map(({ sample }) => `${field(sample.id)},${field(sample.key)}\r\n`);
  const place = URL.createObjectURL(new Blob(["sample_id,sample_key\r\n", ...rows], { type: "text/csv" }));
  const link = make("a", { href: place, download: FILE });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(place), 10000);
}

function copy() {
  const done = () => {
    byId("copy").textContent = "Copied";
    setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
  };
  const select = () => window.getSelection().selectAllChildren(byId("command"));
  // Where the browser gives no clipboard the text stands selected, ready for Ctrl+C.
  if (navigator.clipboard) navigator.clipboard.writeText(command()).then(done, select);
  else select();
}

function startSelection() {
  const names = (key) => [...new Set(data.samples.map((sample) => sample[key]))].sort();
  for (const [id, key] of [["status", "status"], ["source", "source"]]) {
    for (const name of names(key)) byId(id).append(make("option", { value: name, text: name }));
    byId(id).closest("label").hidden = names(key).length < 2;
  }
  const reasons = Object.keys(REASONS).filter((name) => data.samples.some((sample) => sample.why.includes(name)));
  for (const name of reasons) byId("why").append(make("option", { value: name, text: REASONS[name] }));
  byId("why").closest("label").hidden = cards.length === data.rows;
  for (const [name, text] of Object.entries(RULES)) byId("rule").append(make("option", { value: name, text }));
  byId("save").addEventListener("click", save);
  byId("copy").addEventListener("click", copy);
  byId("clear").addEventListener("click", () => {
    for (const { mark } of cards) mark.checked = false;
    marksChanged();
  });
}
