"use strict";
// The report: shows the payload that `quietstar.inspection.report` has written into the document.
{
  const payload = JSON.parse(QS.get("payload").textContent);
  const { rows } = payload;
  const thoughtsAt = (places) => places?.map((place) => (place === null ? null : payload.thoughts[place]));
  for (const row of rows) {
    row.thought_ids = thoughtsAt(row.thought_ids);
    for (const what of Object.values(row.what_if)) what.thought_ids = thoughtsAt(what.thought_ids);
  }
  const N_BEFORE = 7;
  const NAMES = { weight: "mixing weight", reward: "reward", gain: "gain" };
  const ENDS = {
    weight: ["against", "for the thought"],
    reward: ["hurts", "helps"],
    gain: ["less likely", "likelier"],
  };
  const LABELS = Object.fromEntries(payload.interventions.map(({ name, label }) => [name, label]));
  const records = rows.flatMap((row, r) => row.ids.map((_, i) => ({ row, r, i })));

  const nllBefore = ({ row, i }) => (row.before_logprob[i] === null ? null : -row.before_logprob[i]);
  const knowsBefore = rows.some((row) => row.before_logprob.some((value) => value !== null));

  const tokenText = (id) => (id === null || id === undefined ? null : (payload.tokens[id] ?? `[${id}]`));
  const tokenTexts = (ids) => ids?.map(tokenText) ?? null;
  // the beginning of a truncated thought; names are such as truncated_2
  const beginning = (name, ids) => ids?.slice(0, Number(name.split("_").at(-1))) ?? null;
  const topToken = (top) => (top?.length ? tokenText(top[0][0]) : null);
  const before = ({ row, i }, n = N_BEFORE) => row.pieces.slice(Math.max(0, i + 1 - n), i + 1).join("");
  const nextId = ({ row, i }) => row.ids[i + 1] ?? null;
  const at =
    (name) =>
    ({ row, i }) =>
      row[name][i];

  function header() {
    QS.get("title").textContent = QS.visible(payload.title);
    QS.get("made").textContent = QS.visible(`${payload.model} · ${payload.made} · ${records.length} positions`);
    QS.get("summary").append(...payload.summary.map((words, index) => QS.el("li", {}, ...finding(words, index === 0))));
  }

  // Of the verdict, the words before its figures stand out.
  function finding(words, isVerdict) {
    const end = isVerdict ? words.indexOf(". ") + 1 || words.length : 0;
    return [isVerdict ? QS.el("strong", {}, QS.visible(words.slice(0, end))) : null, QS.visible(words.slice(end))];
  }

  function table(headings, lines, { numbers = true } = {}) {
    const cell = (name, content, isFirst) => QS.el(name, { class: numbers && !isFirst ? "number" : null }, content);
    const head = headings.map((heading, index) => {
      const made = cell("th", heading, index === 0);
      made.scope = "col";
      return made;
    });
    const body = lines.map(([first, ...others]) =>
      QS.el("tr", {}, QS.el("th", { scope: "row" }, first), ...others.map((each) => cell("td", each, false))),
    );
    return QS.el("table", {}, QS.el("thead", {}, QS.el("tr", {}, ...head)), QS.el("tbody", {}, ...body));
  }

  function interventions() {
    QS.get("others").hidden = !payload.interventions.length;
    const known = payload.interventions.map((each) => each.delta).filter(Boolean);
    const ends = known.flatMap(QS.ends);
    const range = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const lines = payload.interventions.map(({ label, n, n_same, delta, kl, flips }) => [
      QS.visible(label),
      n_same ? `${n}, ${n_same} unchanged` : String(n),
      QS.whisker(delta, range),
      QS.interval(delta, QS.signed),
      QS.interval(kl),
      QS.interval(flips, QS.share),
    ]);
    const made = table(
      ["instead of its thought", "n", "interval", "Δ log p, nats (95 %)", "KL, nats (95 %)", "top token changes (95 %)"],
      lines,
    );
    made.prepend(QS.el("caption", { class: "unseen" }, "Effect of other thoughts"));
    QS.get("interventions").append(made);
  }

  const list = new QS.TokenList(QS.get("tokens"), (index) => QS.detail(QS.get("detail"), view(records[index])));

  function text() {
    rows.forEach((row, r) => {
      const name = rows.length > 1 ? `Text ${r + 1} of ${rows.length}` : null;
      const run = list.group(name, name ?? "Text");
      row.pieces.forEach((piece) => list.add(run, piece));
    });
    const radios = document.querySelectorAll('input[name="colour"]');
    for (const radio of radios) radio.addEventListener("change", () => paint(radio.value));
    paint([...radios].find((radio) => radio.checked).value);
  }

  function paint(name) {
    const limit = payload.limits[name];
    records.forEach(({ row, i }, index) => {
      const value = row[name][i];
      const label = value === null ? `no ${NAMES[name]}` : `${NAMES[name]} ${QS.number(value, { sign: true })}`;
      list.paint(index, row.pieces[i], QS.step(value, limit), label);
    });
    QS.legend(QS.get("legend"), limit, ...ENDS[name]);
  }

  function view(record) {
    const { row, i } = record;
    const next = nextId(record);
    const nats = (value, sign) => (value === null ? "–" : `${QS.number(value, { sign })} nats`);
    const likeliest = (top) => (top ?? []).map(([id, logprob]) => ({ text: tokenText(id), logprob, isTrue: id === next }));
    return {
      context: before(record, 12),
      next: tokenText(next),
      thought: row.thought[i],
      reason: row.reason[i],
      tokens: tokenTexts(row.thought_ids[i]) ?? [],
      logprobs: row.thought_logprob[i],
      measures: [
        ["mixing weight", QS.number(row.weight[i])],
        ["reward", nats(row.reward[i], true)],
        ["gain", nats(row.gain[i], true)],
        ["base entropy", nats(row.base_entropy[i], false)],
        ...(knowsBefore ? [["nll before training", nats(nllBefore(record), false)]] : []),
      ],
      predictions: [
        { name: "without", top: likeliest(row.base_top[i]), truth: row.base_logprob[i] },
        { name: "with", top: likeliest(row.mixed_top[i]), truth: row.mixed_logprob[i] },
        { name: "only the thought", top: likeliest(row.alone_top[i]), truth: row.alone_logprob[i] },
      ],
      interventions: Object.entries(row.what_if ?? {})
        .filter(([, what]) => what.flips[i] !== null)
        .map(([name, what]) => ({
          label: QS.visible(LABELS[name] ?? name),
          tokens: tokenTexts(what.thought_ids ? what.thought_ids[i] : beginning(name, row.thought_ids[i])),
          delta: what.delta[i],
          kl: what.kl[i],
          flips: Boolean(what.flips[i]),
          top: what.flips[i] ? tokenText(what.top[i]) : topToken(row.mixed_top[i]),
        })),
    };
  }

  function charts() {
    const all = (name) => rows.flatMap((row) => row[name]);
    QS.get("reward-chart").append(QS.histogram(all("reward"), "reward", ", nats"));
    QS.get("weight-chart").append(QS.histogram(all("weight"), "mixing weight", ""));
    const points = rows.flatMap((row) =>
      row.base_logprob.map((logprob, i) => [logprob === null ? null : -logprob, row.reward[i]]),
    );
    const bins = payload.difficulty.filter((each) => each.by === "base nll");
    QS.get("difficulty-chart").append(
      QS.scatter(points, bins, {
        name: "Reward against base nll of the next token",
        xLabel: "base nll of the next token, nats",
        yLabel: "reward, nats",
      }),
    );
  }

  // Effects of thoughts and interventions by difficulty of the token: one of three figures at a time.
  function difficulty() {
    QS.get("difficulty").hidden = !payload.difficulty.length;
    const shows = { delta: QS.signed, kl: QS.number, flips: QS.share };
    const edge = (value) => QS.number(value, { digits: 1 });
    const draw = (figure) => {
      const lines = payload.difficulty.map(({ by, low, high, n, gain, interventions }) => [
        `${by} ${edge(low)} ${high === null ? "and more" : `to ${edge(high)}`}`,
        String(n),
        QS.interval(gain, QS.signed),
        ...interventions.map((each) => QS.interval(each[figure], shows[figure])),
      ]);
      const labels = payload.interventions.map((each) => QS.visible(each.label));
      QS.get("difficulty-table").replaceChildren(table(["difficulty, nats", "n", "gain (95 %)", ...labels], lines));
    };
    for (const radio of document.querySelectorAll('input[name="figure"]')) {
      radio.addEventListener("change", () => draw(radio.value));
      if (radio.checked) draw(radio.value);
    }
  }

  function everyPosition() {
    const joined = (texts) =>
      texts
        ? QS.el("span", { class: "token" }, texts.map((each) => QS.visible(each, { spaces: true })).join(" "))
        : "–";
    const token = (text) => (text === null ? "–" : QS.token(text));
    const column = (name, value, show, more = {}) => ({ name, value, show, filtered: true, ...more });
    const number = (name, key, show) => ({ name, value: at(key), show, number: true });
    const nll = { name: "nll before training", value: nllBefore, show: (value) => QS.number(value), number: true };
    const place = ({ r, i }) => (rows.length > 1 ? `${r + 1}:${i + 1}` : String(i + 1));
    const columns = [
      {
        name: "position",
        value: (record) => record.r * 1e6 + record.i,
        show: (_, record) => place(record),
        exported: { text: ({ r }) => r + 1, position: ({ i }) => i + 1 },
      },
      column(
        "context",
        (record) => before(record),
        (text) => QS.visible(text),
        { kind: "prose" },
      ),
      column(
        "thought",
        ({ row, i }) => tokenTexts(row.thought_ids[i])?.join("") ?? null,
        (_, { row, i }) => joined(tokenTexts(row.thought_ids[i])),
      ),
      column("why", at("reason"), (text) => (text === null ? "–" : QS.visible(text))),
      number("weight", "weight", (value) => QS.number(value)),
      column("next without", ({ row, i }) => topToken(row.base_top[i]), token),
      column("next with", ({ row, i }) => topToken(row.mixed_top[i]), token),
      column("next with only the thought", ({ row, i }) => topToken(row.alone_top[i]), token),
      column("true next", (record) => tokenText(nextId(record)), token),
      number("reward", "reward", QS.signed),
      number("gain", "gain", QS.signed),
      ...(knowsBefore ? [nll] : []),
    ];
    const starts = [];
    rows.reduce((sum, row, r) => ((starts[r] = sum), sum + row.ids.length), 0);
    const made = new QS.Table(QS.get("records"), columns, records, ({ r, i }) => {
      QS.get("tokens").scrollIntoView({ block: "center", behavior: "instant" });
      list.choose(starts[r] + i);
    });
    controls(made);
  }

  function controls(made) {
    const keep = () => made.keep(QS.get("filter").value, QS.get("only").checked ? at("thought") : null);
    made.drawn = (from, to, n) => {
      QS.get("shown").textContent = n ? `Rows ${from + 1} to ${to} of ${n}` : "No rows";
      QS.get("back").disabled = from === 0;
      QS.get("on").disabled = to >= n;
    };
    QS.get("filter").addEventListener("input", keep);
    QS.get("only").addEventListener("change", keep);
    QS.get("back").addEventListener("click", () => made.turn(-1));
    QS.get("on").addEventListener("click", () => made.turn(1));
    QS.get("export").addEventListener("click", () => QS.save("positions.csv", QS.csv(made.rows())));
    made.draw();
  }

  function settings() {
    const asText = (value) => (Array.isArray(value) ? value.join(", ") : JSON.stringify(value));
    const shown = (value) => QS.visible(typeof value === "string" ? value : asText(value));
    for (const [name, values] of [
      ["Settings", payload.settings],
      ["Versions", payload.versions],
    ]) {
      const lines = Object.entries(values).map(([key, value]) => [key, shown(value)]);
      QS.get("settings").append(QS.el("div", {}, QS.el("h3", {}, name), table(["name", "value"], lines, { numbers: false })));
    }
  }

  QS.theme();
  header();
  interventions();
  text();
  charts();
  difficulty();
  everyPosition();
  settings();
  // within a frame, following a link to an anchor would load the page around it
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    list.choose(list.current ?? 0);
  });
  const first = records.findIndex(({ row, i }) => row.thought[i]);
  list.choose(Math.max(first, 0), { focus: false });
}
