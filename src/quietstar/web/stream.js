"use strict";
// Requests to the server, and its answers as they come: server-sent events over fetch.
{
  /** Post JSON. Throws an Error whose message is the server's own line, or says that it cannot be reached. */
  QS.post = async (address, body, { key, signal }) => {
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    return QS.ask(address, { method: "POST", headers, body: JSON.stringify(body), signal });
  };

  /** The same for any request. */
  QS.ask = async (address, settings) => {
    let response;
    try {
      response = await fetch(address, settings);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached; see whether it still runs.");
    }
    if (!response.ok) throw new Error(await complaint(response));
    return response;
  };

  async function complaint(response) {
    try {
      return (await response.json()).error.message;
    } catch {
      return `The server answered with status ${response.status}.`;
    }
  }

  /** The values of a stream of events, up to [DONE]. Throws an Error where the server reports one, or breaks off. */
  QS.events = async function* (response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The server broke off in the middle of its answer.");
      const events = (waiting + value).split(/\r?\n\r?\n/);
      waiting = events.pop();
      for (const data of events.map(dataOf)) {
        if (data === "[DONE]") return;
        if (data === "") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  };

  function dataOf(event) {
    const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
    return lines.map((line) => line.slice(5).trimStart()).join("\n");
  }
}
