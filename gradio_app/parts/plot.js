// The loss of a run: faint points, a smoothed line, validation loss, saves. Mouse, touch and arrow keys read one step.
Tuner.plot = () => {
  const { h, s, settle, kept } = Tuner;
  const L = 50,
    R = 12,
    T = 10,
    B = 26,
    H = 190,
    KEYS = [["save", "saved"], ["sample", "samples"], ["change", "went on"]];
  let curve = null,
    step = null, // which one is read
    log = kept("tuner-plot-log") === "1",
    W = 0;

  const nice = (low, high, count) => {
    const raw = (high - low) / count || 1,
      power = 10 ** Math.floor(Math.log10(raw)),
      unit = [1, 2, 5, 10].find((u) => raw <= u * power) * power;
    const ticks = [];
    for (let t = Math.ceil(low / unit) * unit; t <= high + unit * 1e-6; t += unit) ticks.push(Number(t.toPrecision(8)));
    return ticks;
  };
  // 1, 2 and 5 of each power of ten; where these are too few, even steps.
  const powers = (low, high) => {
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
      for (const u of [1, 2, 5]) if (u * 10 ** p >= low && u * 10 ** p <= high) ticks.push(Number((u * 10 ** p).toPrecision(4)));
    const rest = ticks.length > 6 ? ticks.filter((t) => /^1/.test(t.toExponential())) : ticks;
    return rest.length > 1 ? rest : nice(low, high, 3).filter((t) => t > 0);
  };
  const bounds = (c) => {
    const ys = [...c.line.map((p) => p[1]), ...c.fixed.map((p) => p[1])],
      sorted = c.raw.map((p) => p[1]).sort((a, b) => a - b);
    if (sorted.length) ys.push(sorted[Math.floor(sorted.length * 0.02)], sorted[Math.floor((sorted.length - 1) * 0.98)]);
    const good = log ? ys.filter((y) => y > 0) : ys;
    let low = Math.min(...good),
      high = Math.max(...good);
    if (log) return [low / 1.06, high * 1.06];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  };
  const span = (c) => {
    const far = c.raw.length ? c.raw[c.raw.length - 1][0] : 0;
    return Math.max(1, Math.min(c.of, Math.max(far * 2, Math.round(c.of / 5), 10)));
  };
  const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
  const short = (y) => String(Number(y.toPrecision(3)));
  // The loss at fixed noise by its true name: only items that were held back validate anything.
  const fixed = (c) => (c.held ? "validation loss" : "fixed-noise loss, on trained items");
  // What is said of one step, part by part.
  const told = (c, p) => {
    const said = [`step ${p[0].toLocaleString()}`, `loss ${short(p[1])}`];
    if (p[2] !== null && p[2] !== undefined) said.push(`learning rate ${short(p[2])}`);
    const held = c.fixed.filter((q) => q[0] <= p[0]).pop();
    if (held) said.push(`${c.held ? "validation loss" : "fixed-noise loss"} ${short(held[1])}, step ${held[0].toLocaleString()}`);
    return said;
  };

  // Saves below the axis, samples on it, changes of the run through the whole height.
  const mark = (m, x) =>
    s(
      "path",
      {
        save: { d: `M${x} ${H - B}l-3.5 6h7z`, class: "t-mark-save" },
        sample: { d: `M${x} ${H - B - 3}l3.5 -3.5l-3.5 -3.5l-3.5 3.5z`, class: "t-mark-sample" },
        change: { d: `M${x} ${T}V${H - B}`, class: "t-mark-change" },
      }[m.kind],
      s("title", {}, m.text),
    );
  const picture = (c, read) => {
    const [low, high] = bounds(c),
      end = span(c),
      bent = log ? (y) => Math.log(Math.max(y, low)) : (y) => y;
    const X = (x) => L + (x / end) * (W - L - R),
      Y = (y) => T + (1 - (bent(Math.min(Math.max(y, low), high)) - bent(low)) / (bent(high) - bent(low))) * (H - T - B);
    const path = (points) => points.map((p) => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(" ");
    const across = nice(0, end, Math.max(2, Math.min(7, Math.floor(W / 90))));
    return s(
      "svg",
      { viewBox: `0 0 ${W} ${H}`, width: W, height: H, class: "t-plot", "aria-hidden": "true" },
      s("g", {}, (log ? powers(low, high) : nice(low, high, 4)).map((t) => [
        s("line", { x1: L, x2: W - R, y1: Y(t), y2: Y(t), class: "t-grid" }),
        s("text", { x: L - 8, y: Y(t) + 4, class: "t-tick t-end" }, short(t)),
      ])),
      s("g", {}, across
        .filter((t) => Number.isInteger(t) && X(t) < W - R - 44)
        .map((t) => s("text", { x: X(t), y: H - 6, class: "t-tick t-mid" }, t.toLocaleString()))),
      s("text", { x: W - R, y: H - 6, class: "t-tick t-end" }, "steps"),
      s("g", {}, c.marks.filter((m) => m.step <= end).map((m) => mark(m, X(m.step).toFixed(1)))),
      s("g", {}, c.raw.map((p) =>
        s("circle", { cx: X(p[0]).toFixed(1), cy: Y(p[1]).toFixed(1), r: 1.5, class: "t-point" }))),
      s("polyline", { points: path(c.line), class: "t-line" }),
      c.fixed.length ? s("polyline", { points: path(c.fixed), class: "t-held" }) : "",
      c.fixed.map((p) => s("circle", { cx: X(p[0]).toFixed(1), cy: Y(p[1]).toFixed(1), r: 2.6, class: "t-held-dot" })),
      read ? s("line", { x1: X(read[0]), x2: X(read[0]), y1: T, y2: H - B, class: "t-reader" }) : "",
      read ? s("circle", { cx: X(read[0]), cy: Y(read[1]), r: 4, class: "t-reader-dot" }) : "",
    );
  };
  const tip = (c, read) => {
    const x = L + (read[0] / span(c)) * (W - L - R);
    const side = x > W / 2 ? `right:${(W - x + 10).toFixed(0)}px` : `left:${(x + 10).toFixed(0)}px`;
    return h("div", { class: "t-tip", style: side }, told(c, read).map((text) => h("span", {}, text)));
  };

  const legend = h("div", { class: "t-legend" });
  const box = h("div", { class: "t-plot-box", role: "slider", tabindex: 0, "aria-label": "Loss by step", "aria-valuemin": 0 });
  const none = h(
    "p",
    { class: "t-quiet t-plot-none" },
    "The loss appears with the first steps. A falling line means that it learns; small ups and downs are normal.",
  );
  const draw = () => {
    const any = curve && (curve.raw.length || curve.fixed.length);
    none.hidden = Boolean(any);
    box.hidden = legend.hidden = !any;
    if (!any) return;
    W = box.clientWidth || W || 900;
    const c = curve,
      read = step !== null && c.line.length ? nearest(c.line, step) : null,
      last = read || c.line[c.line.length - 1];
    box.setAttribute("aria-valuemax", c.of);
    box.setAttribute("aria-valuenow", last ? last[0] : 0);
    box.setAttribute("aria-valuetext", last ? told(c, last).join(", ") : "no step yet");
    settle(legend, [
      h("span", { class: "t-key-line" }, "loss"),
      c.fixed.length ? h("span", { class: "t-key-held" }, fixed(c)) : "",
      KEYS.map(([kind, text]) => (c.marks.some((m) => m.kind === kind) ? h("span", { class: "t-key-" + kind }, text) : "")),
      h("button", { class: "t-link t-log-scale", type: "button", "aria-pressed": String(log), onclick: bend }, "Log scale"),
    ]);
    settle(box, [picture(c, read), read ? tip(c, read) : ""]);
  };
  const bend = () => {
    log = !log;
    Tuner.keep("tuner-plot-log", log ? "1" : "");
    draw();
  };
  const look = (at) => {
    step = at;
    draw();
  };
  const point = (e) => look(((e.clientX - box.getBoundingClientRect().left - L) / (W - L - R)) * span(curve));
  const leave = () => look(null);
  box.addEventListener("pointermove", point);
  box.addEventListener("pointerdown", point);
  box.addEventListener("pointerleave", leave);
  box.addEventListener("blur", leave);
  box.addEventListener("keydown", (e) => {
    const all = curve.line,
      now = step === null ? all.length : all.indexOf(nearest(all, step));
    const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: all.length - 1 }[e.key];
    if (e.key === "Escape") return leave();
    if (to === undefined || !all.length) return;
    e.preventDefault();
    look(all[Math.min(Math.max(to, 0), all.length - 1)][0]);
  });
  new ResizeObserver(() => box.clientWidth && box.clientWidth !== W && draw()).observe(box);
  return {
    node: h("div", {}, legend, box, none),
    show: (fresh) => {
      curve = fresh;
      draw();
    },
  };
};
