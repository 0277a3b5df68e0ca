"use strict";
// Charts as inline SVG: histogram, scatter plot with binned means, one interval.
{
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const WIDTH = 380;
  const HEIGHT = 230;
  const INNER = { left: 60, right: 10, top: 10, bottom: 40 };

  function svg(name, attributes = {}, ...children) {
    const made = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const finite = (values) => values.filter((value) => typeof value === "number");

  /** Return the value below which a share of the sorted values lies. */
  QS.quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];

  const tick = (value, digits) => (Math.abs(value) < 10 ** -digits / 2 ? "0" : QS.number(value, { digits }));

  /** Return up to about `most` ticks within a range, a round step apart. */
  QS.ticks = (low, high, most = 6) => {
    const raw = (high - low) / most || 1;
    const size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * size).find((each) => each >= raw * 0.999);
    const digits = Math.min(20, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    const first = Math.ceil(low / step - 1e-9);
    const places = Array.from({ length: most + 2 }, (_, index) => (first + index) * step);
    return places.filter((at) => at <= high + 1e-9 * step).map((at) => ({ at, text: tick(at, digits) }));
  };

  // Return a frame with axes, and the functions x and y, which map values to coordinates.
  function frame(label, xRange, yRange, xLabel, yLabel) {
    const place =
      ([low, high], from, to) =>
      (value) =>
        from + ((value - low) / (high - low || 1)) * (to - from);
    const x = place(xRange, INNER.left, WIDTH - INNER.right);
    const y = place(yRange, HEIGHT - INNER.bottom, INNER.top);
    const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
    for (const { at, text } of QS.ticks(...yRange, 5)) {
      root.append(svg("path", { class: "grid", d: `M${INNER.left} ${y(at)}H${WIDTH - INNER.right}` }));
      root.append(svg("text", { class: "tick", x: INNER.left - 6, y: y(at) + 4, "text-anchor": "end" }, text));
    }
    for (const { at, text } of QS.ticks(...xRange, 6)) {
      root.append(
        svg("text", { class: "tick", x: x(at), y: HEIGHT - INNER.bottom + 16, "text-anchor": "middle" }, text),
      );
    }
    const middle = (INNER.top + HEIGHT - INNER.bottom) / 2;
    root.append(
      svg("path", { class: "axis", d: `M${INNER.left} ${HEIGHT - INNER.bottom}H${WIDTH - INNER.right}` }),
      svg(
        "text",
        { class: "tick", x: (INNER.left + WIDTH - INNER.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        xLabel,
      ),
      svg("text", { class: "tick", transform: `translate(14 ${middle}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
    );
    return { root, x, y };
  }

  function figure(drawing, caption) {
    return QS.el("figure", {}, drawing, QS.el("figcaption", {}, caption));
  }

  /** Return a histogram; the outermost bars include the lowest and the highest one in a hundred values. */
  QS.histogram = (values, name, unit, { bins = 32 } = {}) => {
    const sorted = finite(values).sort((a, b) => a - b);
    if (!sorted.length) return QS.el("p", { class: "note" }, `No ${name} to show.`);
    let [low, high] = [QS.quantile(sorted, 0.01), QS.quantile(sorted, 0.99)];
    if (high - low <= 1e-9 * Math.abs(low)) {
      const margin = Math.abs(low) / 2 || 0.5; // all values are equal
      [low, high] = [low - margin, high + margin];
    }
    const counts = new Array(bins).fill(0);
    for (const value of sorted) {
      counts[Math.max(0, Math.min(bins - 1, Math.floor(((value - low) / (high - low)) * bins)))] += 1;
    }
    const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
    const above = sorted.filter((value) => value > 0).length / sorted.length;
    const description =
      `${sorted.length} positions; mean ${QS.number(mean, { sign: true })}, ` +
      `median ${QS.number(QS.quantile(sorted, 0.5), { sign: true })}, above 0: ${(100 * above).toFixed(0)} %`;
    const { root, x, y } = frame(
      `Histogram of ${name}: ${description}`,
      [low, high],
      [0, Math.max(...counts)],
      `${name}${unit}`,
      "positions",
    );
    counts.forEach((count, index) => {
      if (!count) return;
      const [left, right] = [index, index + 1].map((edge) => x(low + ((high - low) * edge) / bins));
      root.append(
        svg("rect", { class: "bin", x: left + 0.5, y: y(count), width: right - left - 1, height: y(0) - y(count) }),
      );
    });
    if (low < 0 && high > 0)
      root.append(svg("path", { class: "zero", d: `M${x(0)} ${INNER.top}V${HEIGHT - INNER.bottom}` }));
    return figure(root, description);
  };

  /**
   * Return a scatter plot of points, with the means of bins.
   * bins: [{low, high or null, n, reward: estimate or null}].
   */
  QS.scatter = (points, bins, { name, xLabel, yLabel }) => {
    const drawn = points.filter(([a, b]) => typeof a === "number" && typeof b === "number");
    if (!drawn.length) return QS.el("p", { class: "note" }, `No ${name} to show.`);
    const xs = drawn.map(([a]) => a).sort((a, b) => a - b);
    const ys = drawn.map(([, b]) => b).sort((a, b) => a - b);
    const right = Math.max(QS.quantile(xs, 0.995), ...bins.map((bin) => (bin.n ? bin.low : 0))) * 1.05 || 1;
    const known = bins.filter((bin) => bin.reward);
    const ends = known.flatMap(({ reward }) => QS.ends(reward));
    const bottom = Math.min(0, QS.quantile(ys, 0.01), ...ends);
    const top = Math.max(0, QS.quantile(ys, 0.99), ...ends);
    const means = known.map(
      ({ low, high, reward }) => `${QS.interval(reward, QS.signed)} ${high === null ? `from ${low}` : `at ${low} to ${high}`}`,
    );
    const label = `${name}: mean ${means.join(", ") || "of no bin known"}`;
    const { root, x, y } = frame(label, [0, right], bottom === top ? [-1, 1] : [bottom, top], xLabel, yLabel);
    const clip = (value, low, high) => Math.max(low, Math.min(high, value));
    const dots = drawn.map(([a, b]) => `M${x(clip(a, 0, right)).toFixed(1)} ${y(clip(b, bottom, top)).toFixed(1)}h0`);
    root.append(
      svg("path", { class: "dots", d: dots.join("") }),
      svg("path", { class: "zero", d: `M${x(0)} ${y(0)}H${x(right)}` }),
    );
    for (const { low, high, reward } of known) {
      const [from, to] = [x(low), x(Math.min(high ?? right, right))];
      const mean = `M${from} ${y(reward.value)}H${to}`;
      const whisker = reward.low === null ? "" : `M${(from + to) / 2} ${y(reward.low)}V${y(reward.high)}`;
      root.append(svg("path", { class: "mean", d: mean + whisker }));
    }
    const explanation = "lines: mean of each bin, with its 95 % interval if it has enough positions.";
    return figure(root, `${drawn.length} positions as dots; ${explanation}`);
  };

  /** Return an estimate as a dot with a line for its interval, on a given range. */
  QS.whisker = (estimate, [low, high]) => {
    const width = 120;
    const x = (value) => 4 + ((value - low) / (high - low || 1)) * (width - 8);
    const root = svg("svg", {
      viewBox: `0 0 ${width} 16`,
      width,
      height: 16,
      class: "chart whisker",
      "aria-hidden": "true",
    });
    root.append(svg("path", { class: "zero", d: `M${x(0)} 0V16` }));
    if (estimate && estimate.low !== null) {
      root.append(svg("path", { class: "mean", d: `M${x(estimate.low)} 8H${x(estimate.high)}` }));
    }
    if (estimate) root.append(svg("circle", { class: "point", cx: x(estimate.value), cy: 8, r: 3.5 }));
    return root;
  };
}
