"use strict";
// Requests to the server, and its streamed responses: server-sent events over fetch.
{
  /** Post JSON. Throws an Error with the server's message, or if the server cannot be reached. */
  QS.post = async (address, body, { key, signal }) => {
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    return QS.ask(address, { method: "POST", headers, body: JSON.stringify(body), signal });
  };

  /** Send any request, with the same errors. */
  QS.ask = async (address, settings) => {
    let response;
    try {
      response = await fetch(address, settings);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached; check whether it is running.");
    }
    if (!response.ok) throw new Error(await errorMessage(response));
    return response;
  };

  async function errorMessage(response) {
    try {
      return (await response.json()).error.message;
    } catch {
      return `The server responded with status ${response.status}.`;
    }
  }

  /** Yield the events of a stream up to [DONE]. Throws an Error if the server sends one, or ends the stream early. */
  QS.events = async function* (response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let pending = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The server closed the connection before the response was complete.");
      const events = (pending + value).split(/\r?\n\r?\n/);
      pending = events.pop();
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
