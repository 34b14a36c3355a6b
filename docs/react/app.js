import { StrictMode, createElement, useReducer, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import htm from "htm";
import { WebSocketHandler } from "./WebSocketHandler.js";

const html = htm.bind(createElement); // JSX without a build step
const url = "http://localhost:8000/";
const token = new URLSearchParams(location.hash.slice(1)).get("token");

/** What all messages so far add up to. */
function apply(state, message) {
  switch (message.type) {
    case "snapshot":
      return { tasks: message.tasks, questions: message.follow_ups.at(-1)?.questions ?? [] };
    case "gap":
      return apply(state, message.snapshot);
    case "follow_up_questions":
      return { ...state, questions: message.questions };
    case "indexing_progress":
    case "experiment_progress":
      return { ...state, tasks: [...state.tasks.filter((task) => task.task_id !== message.task_id), message] };
    default:
      return state;
  }
}

function App() {
  const socket = useRef(null);
  const [{ tasks, questions }, dispatch] = useReducer(apply, { tasks: [], questions: [] });
  const [question, setQuestion] = useState("");
  const [answer, setAnswer] = useState({ text: "", sources: [] });
  const [busy, setBusy] = useState(false);

  async function ask(question) {
    setQuestion(question);
    setAnswer({ text: "", sources: [] });
    setBusy(true);
    try {
      const onDelta = (piece) => setAnswer(({ text }) => ({ text: text + piece, sources: [] }));
      const { answer, sources } = await socket.current.ask(question, { onDelta });
      setAnswer({ text: answer, sources });
    } catch (error) {
      setAnswer({ text: error.message, sources: [] }); // it says what to do next
    }
    setBusy(false);
  }

  function submit(event) {
    event.preventDefault();
    ask(question);
  }

  return html`<main>
    <${WebSocketHandler} ref=${socket} url=${url} token=${token} onMessage=${dispatch} />
    <form onSubmit=${submit}>
      <fieldset disabled=${busy}>
        <input aria-label="Question" value=${question} onChange=${(event) => setQuestion(event.target.value)} />
        <button>Ask</button>
        <ul aria-label="Ask next">
          ${questions.map((next) => html`<li key=${next}>
            <button type="button" onClick=${() => ask(next)}>${next}</button>
          </li>`)}
        </ul>
      </fieldset>
    </form>
    <section aria-label="Answer">
      <p style=${{ whiteSpace: "pre-wrap" }}>${answer.text}</p>
      <ol>${answer.sources.map(({ number, title, text }) => html`<li key=${number} value=${number} title=${text}>${title}</li>`)}</ol>
    </section>
    <ul aria-label="Progress">
      ${tasks.map((task) => html`<li key=${task.task_id}>
        ${task.index ?? task.experiment}: ${task.state}, ${task.chunks_done ?? task.cells_done} of${" "}
        ${task.chunks_total ?? task.cells_total ?? "?"}
      </li>`)}
    </ul>
  </main>`;
}

createRoot(document.getElementById("root")).render(html`<${StrictMode}><${App} /><//>`);
