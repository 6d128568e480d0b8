// --- plots ------------------------------------------------------------------------------------------------------------

const PLOT = { width: 450, height: 208, left: 62, right: 12, top: 20, bottom: 50 };
const FLOOR = PLOT.height - PLOT.bottom;
const MIDDLE = (PLOT.left + PLOT.width - PLOT.right) / 2;

function ticksBetween(low, high, most = 8) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((size) => size * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) {
    ticks.push(Number(tick.toFixed(9)));
  }
  return ticks;
}

const percent = (part) => `${Number((100 * part).toPrecision(2))}%`;

// Axes of shares: `low` to `high` along x, 0 to `top` along y; with `least` a share the y axis is logarithmic from the
// power of ten at or below it.
function axes(x, top, least, upward) {
  const drawn = [];
  const bottom = least && 10 ** Math.floor(Math.log10(least) + 1e-9);
  const place = least
    ? (value) => (value <= 0 ? 0 : Math.max(0, Math.log10(value / bottom) / (Math.log10(top / bottom) || 1)))
    : (value) => value / (top || 1);
  const y = (value) => FLOOR - place(value) * (FLOOR - PLOT.top);
  let marks = ticksBetween(0, top, 4);
  if (least) {
    marks = [];
    for (let mark = bottom; mark <= top * 1.001; mark *= 10) marks.push(mark);
  }
  for (const mark of marks) {
    drawn.push(svg("line", { class: "grid", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: y(mark), y2: y(mark) }));
    drawn.push(svg("text", { class: "y", x: PLOT.left - 5, y: y(mark) + 4, "text-anchor": "end" }, percent(mark)));
  }
  drawn.push(svg("text", { class: "label", transform: `translate(11 ${(FLOOR + PLOT.top) / 2}) rotate(-90)`,
    "text-anchor": "middle" }, upward));
  return { drawn, x, y };
}

function figure(title) {
  const drawing = svg("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": title });
  const caption = make("figcaption", { text: title });
  byId("plots").append(make("figure", {}, drawing, caption));
  return drawing;
}

function along(low, high) {
  return (value) => PLOT.left + ((value - low) / (high - low || 1)) * (PLOT.width - PLOT.left - PLOT.right);
}

function xAxis(x, ticks, label, named = String) {
  return [
    svg("line", { class: "axis", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: FLOOR, y2: FLOOR }),
    ...ticks.flatMap((tick) => [
      svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: FLOOR, y2: FLOOR + 4 }),
      svg("text", { class: "x", x: x(tick), y: FLOOR + 16, "text-anchor": "middle" }, named(tick)),
    ]),
    svg("text", { class: "label", x: MIDDLE, y: PLOT.height - 8, "text-anchor": "middle" }, label),
  ];
}

function bars({ x, y }, edges, shares) {
  return shares.map((part, bin) => {
    const [from, to] = [x(edges[bin]), x(edges[bin + 1])];
    return svg("rect", { class: edges[bin] < 0 ? "bar against" : "bar", x: from, width: Math.max(to - from - 0.5, 0.5),
      y: y(part), height: FLOOR - y(part) });
  });
}

function boundMarks(x, low, high) {
  if (!data.live) return [];  // Alpha and beta bound what the map gives.
  // Side by side where they are so near that one name would cover the other.
  const places = ["alpha", "beta"].map((name) => x(Math.min(Math.max(settings[name], low), high)));
  const near = places[1] - places[0] < 34;
  return ["alpha", "beta"].flatMap((name, at) => [
    svg("line", { class: "bound", x1: places[at], x2: places[at], y1: PLOT.top - 4, y2: FLOOR }),
    svg("text", { class: "name", x: places[at] + (near ? 8 * at - 4 : 0), y: 11,
      "text-anchor": near ? ["end", "start"][at] : "middle" }, name),
  ]);
}

// What draws each plot anew.
const plots = [];

function plotScores() {
  const { edges, counts } = data.histogram;
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return;
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const [x, ticks] = [along(low, high), ticksBetween(low, high)];
  const shares = counts.map((count) => count / total);
  const [most, least] = [Math.max(...shares), Math.min(...shares.filter((part) => part > 0))];
  const named = `${NOUN}${data.score.unit && ` (${data.score.unit})`}`;
  const label = data.score.signed ? `← the image speaks against   ${named}   for →` : named;
  const histogram = figure(`Share of tokens in each bin, of ${counted(total, "token")} of all rows; the outermost are in the end bins`);
  plots.push(() => {
    const scale = axes(x, most, settings.log && least, "share of tokens");
    histogram.replaceChildren(...scale.drawn, ...bars(scale, edges, shares), ...xAxis(x, ticks, label),
      ...boundMarks(x, low, high));
  });
  plotWeights();
  const rising = figure(`Share of the tokens of all rows at or below a ${NOUN}`);
  let below = 0;
  const sums = shares.map((part) => (below += part));
  plots.push(() => {
    const scale = axes(x, 1, settings.log && least, "share of tokens");
    const points = sums.map((sum, bin) => [edges[bin + 1], sum]).filter(([, sum]) => sum > 0);
    rising.replaceChildren(...scale.drawn,
      svg("polyline", { class: "curve", points: points.map(([at, sum]) => `${x(at)},${scale.y(sum)}`).join(" ") }),
      ...xAxis(x, ticks, label), ...boundMarks(x, low, high));
  });
}

const WEIGHT_BINS = 40;

// Of samples on this page, the others' tokens are not here: of those drawn by lot, where the page holds any.
function plotWeights() {
  const measured = cards.filter(({ sample }) => sample.tokens.length);
  const drawn = measured.filter(({ sample }) => sample.why.includes("random"));
  const lot = data.samples.length < data.rows && drawn.length > 0;
  const used = lot ? drawn : measured;
  if (!used.length) return;
  const x = along(0, 1);
  const edges = Array.from({ length: WEIGHT_BINS + 1 }, (_, edge) => edge / WEIGHT_BINS);
  const weighed = data.live ? "at this alpha, beta and window" : `by ${data.map}`;
  const drawing = figure(`Weights of the ${used.length} measured samples ${lot ? "drawn at random" : "on this page"}, ${weighed}`);
  plots.push(() => {
    const { alpha, beta, log } = settings;
    const high = beta > alpha ? beta : alpha + 1;
    const counts = new Array(WEIGHT_BINS).fill(0);
    for (const card of used) {
      card.weights.forEach((weight, token) => {
        if (card.sample.scores[token] === null) return;
        const bin = Math.floor(((weight - alpha) / (high - alpha)) * WEIGHT_BINS);
        counts[Math.min(Math.max(bin, 0), WEIGHT_BINS - 1)]++;
      });
    }
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    const shares = counts.map((count) => count / total);
    const least = Math.min(...shares.filter((part) => part > 0));
    const scale = axes(x, Math.max(...shares) || 1, log && Number.isFinite(least) && least, "share of tokens");
    const drawn = svg("g", { id: "weights" });
    drawn.append(...bars(scale, edges, shares));
    drawing.replaceChildren(...scale.drawn, drawn, ...xAxis(x, [0, 0.25, 0.5, 0.75, 1], data.live ? "weight, from alpha to beta" : "weight",
      (part) => number(alpha + part * (high - alpha), 2)));
  });
}

function drawPlots() {
  for (const draw of plots) draw();
}
