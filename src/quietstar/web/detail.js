"use strict";
// The details of one position: its thought, the predictions without, with and only by the thought, interventions.
{
  /**
   * Show the details of one token in a box. view:
   *   context, next      text before the thought and the token after it (null at the end)
   *   thought, reason    whether there was a thought, and why
   *   tokens, logprobs   text of the thought's tokens, and their log-probabilities or null
   *   measures           [name, text] pairs
   *   predictions        [{name, top: [{text, logprob, isTrue}], truth: logprob of the next token or null}]
   *   interventions      [{label, tokens, delta, kl, flips, top}]
   */
  QS.detail = (box, view) => {
    const parts = [heading(view), thought(view), measures(view.measures), predictions(view)];
    if (view.interventions.length) parts.push(...interventions(view.interventions));
    box.replaceChildren(...parts);
    box.scrollTop = 0;
  };

  function heading(view) {
    const next = view.next === null ? "end of the text" : QS.visible(view.next, { spaces: true });
    return QS.el(
      "h3",
      {},
      `…${QS.visible(view.context)} `,
      QS.el("span", { class: "muted" }, "→ "),
      QS.el("mark", {}, next),
    );
  }

  function thought(view) {
    const why = view.reason ? QS.visible(view.reason) : "";
    if (!view.thought) return QS.el("p", { class: "note" }, why ? `No thought: ${why}` : "No thought here");
    const chips = view.tokens.map((text, index) => {
      const logprob = view.logprobs?.[index];
      const share = typeof logprob === "number" ? QS.el("small", {}, QS.percent(logprob)) : null;
      return QS.el("li", {}, QS.token(text), share);
    });
    return QS.el(
      "div",
      { class: "thought" },
      QS.el("h4", {}, "Thought", QS.el("span", { class: "muted" }, why ? ` (why: ${why})` : "")),
      chips.length ? QS.el("ol", { class: "chips" }, ...chips) : QS.el("p", { class: "note" }, "no tokens"),
    );
  }

  function measures(pairs) {
    const cells = pairs.map(([name, text]) => QS.el("div", {}, QS.el("dt", {}, name), QS.el("dd", {}, text)));
    return QS.el("dl", { class: "measures" }, ...cells);
  }

  function predictions(view) {
    return QS.el("div", { class: "three" }, ...view.predictions.map(QS.prediction));
  }

  /** Return one prediction: its likeliest tokens with probabilities; the token that came next is marked. */
  QS.prediction = ({ name, top, truth }) => {
    const items = top.map(({ text, logprob, isTrue }) => {
      const item = QS.el(
        "li",
        { class: isTrue ? "true" : null },
        QS.token(text),
        QS.el("span", { class: "number" }, QS.percent(logprob)),
        isTrue ? QS.el("span", { class: "unseen" }, " (came next)") : null,
      );
      item.style.setProperty("--share", typeof logprob === "number" ? Math.exp(logprob) : 0);
      return item;
    });
    return QS.el(
      "section",
      {},
      QS.el("h4", {}, name),
      items.length ? QS.el("ol", { class: "likeliest" }, ...items) : QS.el("p", { class: "note" }, "–"),
      typeof truth === "number" ? QS.el("p", { class: "note" }, `next: ${QS.percent(truth)}`) : null,
    );
  };

  function interventions(all) {
    const rows = all.map((each) =>
      QS.el(
        "tr",
        {},
        QS.el("th", { scope: "row" }, each.label, ...chain(each.tokens)),
        QS.el("td", { class: "number" }, QS.number(each.delta, { sign: true })),
        QS.el("td", { class: "number" }, QS.number(each.kl)),
        QS.el(
          "td",
          { class: each.flips ? "flips" : null },
          each.top === null ? "–" : QS.token(each.top),
          each.flips ? QS.el("span", { class: "unseen" }, " (changed)") : null,
        ),
      ),
    );
    const head = ["thought", "Δ log p", "KL", "top token"].map((name, index) =>
      QS.el("th", { scope: "col", class: index === 1 || index === 2 ? "number" : null }, name),
    );
    return [
      QS.el("h4", {}, "With other thoughts"),
      QS.el("table", {}, QS.el("thead", {}, QS.el("tr", {}, ...head)), QS.el("tbody", {}, ...rows)),
      QS.el(
        "p",
        { class: "note" },
        "Δ log p: change for the token that came next, in nats. Coloured: the top token changed.",
      ),
    ];
  }

  function chain(tokens) {
    if (!tokens || !tokens.length) return [];
    return [
      QS.el(
        "div",
        {},
        QS.el("span", { class: "token muted" }, tokens.map((text) => QS.visible(text, { spaces: true })).join(" ")),
      ),
    ];
  }
}
