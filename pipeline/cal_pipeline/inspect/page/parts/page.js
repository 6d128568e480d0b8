// --- controls, views, and the drawing of what has changed --------------------------------------------------------------

const VIEWS = ["samples", "overview", "measurement"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let weighed = "";
let plotted = "";

function paint() {
  const { theme } = settings;
  document.documentElement.dataset.theme = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  byId("theme").textContent = `Theme: ${theme === "system" ? "as the system" : theme}`;
}

// Every control has the id of its setting.
function setControls() {
  for (const name of Object.keys(SETTINGS)) {
    const control = byId(name);
    if (!control || !("value" in control) || control.tagName === "BUTTON") continue;
    if (control.type === "checkbox") control.checked = settings[name];
    else if (control.value !== String(settings[name])) control.value = settings[name];
    // A status that no sample here has is no option; the choice is then none.
    if (control.tagName === "SELECT" && control.selectedIndex < 0) {
      settings[name] = SETTINGS[name][0];
      control.value = settings[name];
    }
  }
  byId("direction").setAttribute("aria-pressed", String(settings.down));
  byId("direction").textContent = settings.down ? "highest first" : "lowest first";
  byId("alpha-value").textContent = number(settings.alpha, 2);
  byId("beta-value").textContent = number(settings.beta, 2);
}

function setView() {
  for (const name of VIEWS) {
    const chosen = settings.view === name;
    byId(name).hidden = !chosen;
    byId(`tab-${name}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
}

function draw() {
  setControls();
  setView();
  paint();
  const { alpha, beta, window: width, shade } = settings;
  const now = [alpha, beta, width, shade].join(" ");
  if (now !== weighed) recolour();
  weighed = now;
  drawScale();
  if (`${now} ${settings.log}` !== plotted) drawPlots();
  plotted = `${now} ${settings.log}`;
  arrange();
  choose();
  drawSelection();
  refreshTip();
  writeAddressSoon();
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function changed(name, value) {
  settings[name] = value;
  // The clamp needs alpha <= beta: the one that is moved takes the other along.
  if ((name === "alpha" || name === "beta") && settings.alpha > settings.beta) {
    settings[name === "alpha" ? "beta" : "alpha"] = value;
  }
  soon();
}

function startTabs() {
  const tabs = VIEWS.map((name) => byId(`tab-${name}`));
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => changed("view", VIEWS[at]));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = (to + tabs.length) % tabs.length;
      settings.view = VIEWS[next];
      draw();
      tabs[next].focus();
    });
  });
}

function startControls() {
  if (data.live) {
    for (const name of ["alpha", "beta"]) byId(name).max = data.sliderMax;
  } else {
    for (const name of ["alpha", "beta", "window"]) byId(name).closest("label").hidden = true;
    byId("fixed").textContent = `Weights are of ${data.score.name} by ${data.map}, as cal-inspect wrote them: alpha ` +
      `${data.alpha}, window ${data.window}. Only those of map clamp are computed here; for others make the page again.`;
    byId("fixed").hidden = false;
  }
  for (const width of WINDOWS) byId("window").append(make("option", { value: width, text: String(width) }));
  for (const [name, [first]] of Object.entries(SETTINGS)) {
    const control = byId(name);
    if (!control || !("value" in control) || control.tagName === "BUTTON") continue;
    control.addEventListener(control.tagName === "SELECT" || control.type === "checkbox" ? "change" : "input", () => {
      const given = control.type === "checkbox" ? control.checked : control.value;
      changed(name, typeof first === "number" ? Number(given) : given);
    });
  }
  byId("direction").addEventListener("click", () => changed("down", !settings.down));
  byId("theme").addEventListener("click", () => changed("theme", THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length]));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  // The address is the page's state and no place in it.
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    settings.view = "samples";
    draw();
    if (current) goTo(current);
    else byId("search").focus();
  });
  dark.addEventListener("change", paint);
}

function fromAddress() {
  readAddress();
  setMarks();
  draw();
  const card = cards.find(({ sample }) => String(sample.row) === settings.at);
  if (settings.view === "samples" && shown.includes(card)) {
    makeCurrent(card);
    card.element.scrollIntoView({ block: "center" });
  }
}

function start() {
  checkAgainstPython();
  drawFacts();
  drawTables();
  plotScores();
  startSelection();
  startTabs();
  startControls();
  startGallery();
  const narrow = window.innerWidth < 640;
  byId("weighting").open = !narrow;
  fromAddress();
  if (["why", "status", "source", "limit", "marks"].some((name) => settings[name] !== SETTINGS[name][0])) {
    byId("select").open = true;
  }
  window.addEventListener("hashchange", fromAddress);
  window.addEventListener("pagehide", writeAddress);
  // For the console of whoever wants to look closer, and for the tests.
  globalThis.calPage = { data, settings, weightsOf: (index) => cards[index].weights };
}

start();
