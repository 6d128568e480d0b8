// --- facts and tables -------------------------------------------------------------------------------------------------

function drawFacts() {
  for (const [name, value] of data.facts) {
    byId("summary").append(make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
  }
  for (const [name, value] of data.settings) {
    byId("settings").append(make("dt", { text: name }), make("dd", { text: value }));
  }
  const audit = byId("audit");
  if (data.audit) {
    audit.classList.toggle("unfit", !data.audit.fit);
    audit.append(...data.audit.lines.map((line) => make("p", { text: line })));
  } else {
    const code = make("code", { text: "cal-inspect audit" });
    audit.append(make("p", {}, "No audit was found beside these shards. ", code,
      " tells whether the reference is fit for the data; make the page again after it."));
  }
}

function cell(value, left) {
  const made = make("td", { class: left ? "left" : "" });
  if (typeof value === "string") {
    made.textContent = value;
    if (left) made.dir = "auto";
  } else if ("row" in value) {
    const there = cards.some(({ sample }) => sample.row === value.row);
    const words = `#${value.row} ${value.text}`;
    made.append(there ? make("a", { href: `#at=${value.row}`, "data-row": value.row, text: words }) : words);
  } else {
    // What is no more than a blank is still to be seen.
    const token = value.token.trim() ? value.token : JSON.stringify(value.token);
    made.append(make("bdi", {}, value.before, make("mark", { text: token }), value.after));
  }
  return made;
}

function drawTables() {
  for (const { title, note, columns, left, rows } of data.tables) {
    const head = make("tr", {}, ...columns.map((name, at) =>
      make("th", { scope: "col", class: left.includes(at) ? "left" : "", text: name })));
    const body = rows.map((cells) => make("tr", {}, ...cells.map((value, at) => cell(value, left.includes(at)))));
    const caption = make("caption", {}, make("b", { text: title }), note ? ` ${note}` : "");
    const table = make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...body));
    byId("tables").append(make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": title }, table));
  }
  byId("tables").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-row]");
    if (!link) return;
    event.preventDefault();
    showRow(Number(link.dataset.row));
  });
}
