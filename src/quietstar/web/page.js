"use strict";
// The server's page: continues a prompt with thoughts and without, token by token, shows each token's thought, and
// predicts with another thought in its place.
{
  // Possible ends of the colour scale: the first that covers all mixing weights so far. At 1, only the thought counts.
  const LIMITS = [0.02, 0.05, 0.1, 0.2, 0.5, 1];
  const field = (id) => QS.get(id).value;
  let running = null; // aborts the running continuations
  let trying = null; // aborts the last request with another thought
  let model = null;

  /** One continuation: shows its tokens as they arrive, and the details of a selected one. */
  class Column {
    constructor(name, settings) {
      this.box = QS.get(name);
      this.status = QS.get(`${name}-status`);
      this.settings = settings;
      this.list = new QS.TokenList(this.box, (index) => choose(this, index));
      this.box.addEventListener("scroll", () => {
        this.atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
      });
      this.begin("");
    }

    begin(prompt) {
      this.list.clear();
      this.entries = [];
      this.shown = [];
      this.promptIds = [];
      this.limit = LIMITS[0];
      this.prompt = prompt;
      this.status.textContent = "";
      this.atEnd = true;
      this.frame = null;
      this.run = this.list.group(null, "Tokens");
      this.run.append(QS.el("span", { class: "piece fixed" }, QS.symbols(prompt, "\n")));
    }

    async write(body, options) {
      let [usage, finish] = [null, null];
      const response = await QS.post("/v1/completions", { ...body, ...this.settings }, options);
      for await (const chunk of QS.events(response)) {
        options.signal.throwIfAborted();
        this.promptIds = chunk.prompt_token_ids ?? this.promptIds;
        usage = chunk.usage ?? usage;
        for (const choice of chunk.choices ?? []) {
          this.add(choice.thoughts ?? [], choice.text ?? "");
          finish = choice.finish_reason ?? finish;
        }
      }
      this.status.textContent = this.summary(usage, finish);
    }

    // Add a chunk: if its text cannot be split by token, the last token gets all of it.
    add(entries, text) {
      if (!entries.length && text) this.run.append(QS.el("span", { class: "piece fixed" }, QS.symbols(text, "\n")));
      const canSplit = entries.length > 1 && entries.map((entry) => entry.token).join("") === text;
      entries.forEach((entry, index) => {
        const piece = canSplit ? entry.token : index === entries.length - 1 ? text : "";
        this.list.add(this.run, piece);
        this.entries.push(entry);
        this.shown.push(piece);
        this.paint(this.entries.length - 1);
        if (entry.thought) this.widen(Math.abs(entry.mixing_weight));
      });
      this.follow();
    }

    paint(index) {
      const entry = this.entries[index];
      const value = entry.thought ? entry.mixing_weight : null;
      const label = value === null ? "no thought" : `mixing weight ${QS.number(value, { sign: true })}`;
      this.list.paint(index, this.shown[index], QS.step(value, this.limit), label);
    }

    // Extend the colour scale to a weight of this size.
    widen(size) {
      if (size <= this.limit || this.limit === LIMITS.at(-1)) return;
      this.limit = LIMITS.find((end) => size <= end) ?? LIMITS.at(-1);
      this.entries.forEach((_, index) => this.paint(index));
      legend();
    }

    // Scroll at most once per frame, as measuring the height of a long text is slow.
    follow() {
      if (!this.atEnd || this.frame) return;
      this.frame = requestAnimationFrame(() => {
        this.frame = null;
        this.box.scrollTop = this.box.scrollHeight;
      });
    }

    summary(usage, finish) {
      const thoughts = this.entries.filter((entry) => entry.thought);
      const n =
        usage?.completion_tokens_details?.reasoning_tokens ??
        thoughts.flatMap((entry) => entry.thought_ids ?? []).length;
      const why = { stop: "; end of text", length: "; maximum reached" }[finish] ?? "";
      return `${this.entries.length} tokens, ${thoughts.length || "no"} thoughts${n ? ` (${n} tokens)` : ""}${why}`;
    }

    idsBefore(index) {
      return [...this.promptIds, ...this.entries.slice(0, index).map((entry) => entry.id)];
    }
  }

  const columns = { on: new Column("on", {}), off: new Column("off", { think: "never" }) };
  let chosen = null;

  function legend() {
    QS.legend(QS.get("legend"), columns.on.limit, "against", "for the thought");
  }

  function choose(column, index) {
    const entry = column.entries[index];
    for (const other of Object.values(columns)) if (other !== column) other.list.leave();
    chosen = { column, index, entry };
    const before = [column.prompt, ...column.shown.slice(0, index)].join("");
    QS.detail(QS.get("detail"), {
      context: [...before].slice(-60).join(""),
      next: entry.token,
      thought: entry.thought,
      reason: entry.reason,
      tokens: entry.thought_tokens ?? [],
      logprobs: null,
      measures: entry.thought ? [["mixing weight", QS.number(entry.mixing_weight)]] : [],
      predictions: [
        prediction("without", entry.base, entry),
        prediction("with", entry.mixed, entry),
        prediction("only the thought", entry.thought_alone, entry),
      ],
      interventions: [],
    });
    trying?.abort();
    QS.get("answer").replaceChildren();
    QS.get("what-if").hidden = false;
    QS.get("thought").value = entry.thought_text ?? "";
    chosen.filled = field("thought"); // the text box normalizes line ends
  }

  function prediction(name, top, { id }) {
    return {
      name,
      top: (top ?? []).map((each) => ({ text: each.token, logprob: each.logprob, isTrue: each.id === id })),
    };
  }

  async function whatIf() {
    trying?.abort();
    trying = new AbortController();
    const { column, index, entry } = chosen;
    const thought = field("thought");
    const own = entry.thought && thought === chosen.filled;
    const body = {
      token_ids: column.idsBefore(index),
      ...(own ? { thought_ids: entry.thought_ids } : { thought }),
      top_k: 5,
    };
    const response = await QS.post("/v1/thoughts", named(body), { key: field("key"), signal: trying.signal });
    const found = await response.json();
    const three = [
      prediction("with its own thought", entry.mixed, entry),
      prediction("with this thought", found.mixed, entry),
      prediction("only this thought", found.thought_alone, entry),
    ];
    QS.get("answer").replaceChildren(
      QS.el("h4", {}, "Thought"),
      QS.el("ol", { class: "chips" }, ...found.thought.tokens.map((text) => QS.el("li", {}, QS.token(text)))),
      QS.el("p", { class: "note" }, `mixing weight ${QS.number(found.mixing_weight)}`),
      QS.el("div", { class: "three" }, ...three.map(QS.prediction)),
    );
  }

  const named = (body) => (model === null ? body : { model, ...body });

  async function start() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    const compare = QS.get("compare").checked;
    const think = field("think").trim();
    const prompt = field("prompt");
    const body = named({
      prompt,
      max_tokens: Number(field("max_tokens")),
      temperature: Number(field("temperature")),
      seed: Number(field("seed")),
      ...(think ? { think } : {}),
      stream: true,
      stream_options: { include_usage: true },
      thoughts: true,
    });
    QS.get("output").hidden = false;
    QS.get("off-column").hidden = !compare;
    QS.get("what-if").hidden = true;
    QS.get("detail").replaceChildren(QS.el("p", { class: "note" }, "Select a token to see its thought."));
    const both = compare ? [columns.on, columns.off] : [columns.on];
    for (const column of both) column.begin(prompt);
    legend();
    QS.get("stop").disabled = false;
    const stopped = (column) => () => {
      if (running === mine) column.status.textContent = `stopped; ${column.summary(null, null)}`;
    };
    const options = { key: field("key"), signal: mine.signal };
    await Promise.all(both.map((column) => reported(column.write(body, options), stopped(column))));
    if (running === mine) QS.get("stop").disabled = true;
  }

  /** Wait for a promise, and show the user its error, unless it was aborted. */
  async function reported(promise, stopped = () => {}) {
    try {
      await promise;
    } catch (error) {
      if (error.name === "AbortError") stopped();
      else QS.get("alert").textContent = QS.visible(error.message);
    }
  }

  async function introduce() {
    try {
      const { data } = await (await QS.ask("/v1/models", {})).json();
      model = data[0].id;
      QS.get("model").textContent = QS.visible(model);
    } catch {
      // a server with a key tells its model only to those who have it
    }
  }

  function listen(id, act) {
    QS.get(id).addEventListener("submit", (event) => {
      event.preventDefault();
      QS.get("alert").textContent = "";
      reported(act());
    });
  }

  QS.theme();
  listen("ask", start);
  listen("what-if", whatIf);
  QS.get("stop").addEventListener("click", () => running?.abort());
  for (const id of ["prompt", "thought"]) {
    QS.get(id).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
    });
  }
  introduce();
}
