/** The ask view: choose an engine, ask, read the answer as it arrives, continue with a follow-up question. */

import type { Activity } from '../client/activity.js';
import { Announcer, arrange, h, keepLineBreak, say, set } from './dom.js';
import { type Exchange, ExchangeElement, isExchange } from './exchange.js';
import type { Host } from './host.js';
import type { Engine, ListenerMessage, ResponseContent } from '../client/messages.js';
import { showChips } from './passages.js';
import { type AskError, type AskOptions, newId } from '../client/socket.js';

const MAX_EXCHANGES = 30;
const MAX_STORED = 1_000_000; // characters

export interface Channel {
  /** Whether a question is sent immediately. */
  readonly isOpen: boolean;
  ask(question: string, options: AskOptions): Promise<ResponseContent>;
}

export interface AskEvents {
  /** Called when an answer arrives. */
  answered?: (question: string, answer: ResponseContent) => void;
  /** Called when a suggested question is clicked. */
  chosen?: (question: string) => void;
}

export class AskView {
  readonly element: HTMLElement;
  private readonly announcer = new Announcer(0);
  private readonly log = h('div', { class: 'rk-log', role: 'log', 'aria-live': 'off', tabindex: 0 });
  private readonly suggested = h('div', { class: 'rk-suggested' });
  private readonly engine = h('select', { class: 'rk-select' });
  private readonly question = h('textarea', { rows: 2, class: 'rk-question', beforeinput: keepLineBreak });
  private readonly button: HTMLButtonElement;
  private readonly clear: HTMLButtonElement;
  private readonly none = h('p', { class: 'rk-empty' });
  private exchanges: Exchange[];
  private readonly shown = new Map<string, ExchangeElement>();
  /** The content of storage when it was last read. */
  private stored = new Set<string>();
  private chosen = '';
  private begun = false;
  private stop: AbortController | null = null;
  private engines = '';
  private suggestedId: unknown = null;
  private readonly pieces: [ExchangeElement, string][] = [];

  constructor(
    private readonly activity: Activity,
    private readonly host: Host,
    private readonly channel: Channel,
    private readonly events: AskEvents = {},
  ) {
    const { words } = host;
    this.exchanges = this.restore();
    this.button = h('button', { type: 'submit', class: 'rk-button rk-primary' }, words.__('Ask'));
    this.clear = h(
      'button',
      { type: 'button', class: 'rk-button', title: words.__('Forget the questions above'), click: () => this.forget() },
      words.__('Clear'),
    );
    set(this.question, 'placeholder', words.__('Ask your documents…'));
    set(this.question, 'aria-label', words.__('Question'));
    set(this.engine, 'aria-label', words.__('Engine'));
    set(this.log, 'aria-label', words.__('Questions and answers'));
    this.engine.addEventListener('change', () => (this.chosen = this.engine.value));
    window.addEventListener('pagehide', () => this.keepPending(), { signal: host.ended });
    this.question.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.submit();
      }
    });
    const form = h(
      'form',
      {
        class: 'rk-form',
        submit: (event: Event) => {
          event.preventDefault();
          this.stop ? this.stop.abort() : this.submit();
        },
      },
      this.question,
      h('div', { class: 'rk-line' }, this.engine, this.clear, this.button),
    );
    this.element = h(
      'div',
      { class: 'rk-view rk-ask' },
      this.announcer.element,
      this.none,
      this.log,
      this.suggested,
      form,
    );
    this.showExchanges();
  }

  /** Focus the question field. */
  focus(): void {
    this.question.focus();
  }

  /** Apply a message to our questions. */
  apply(message: ListenerMessage): void {
    const snapshot = message.type === 'gap' ? message.snapshot : message.type === 'snapshot' ? message : null;
    for (const event of snapshot?.follow_ups ?? (message.type === 'follow_up_questions' ? [message] : [])) {
      const exchange = this.exchanges.find(({ id }) => id === event.request_id);
      if (exchange && exchange.followUps.join() !== event.questions.join()) {
        exchange.followUps = event.questions.slice(0, 10);
        this.store();
        this.following(() => this.showExchanges());
      }
    }
  }

  render(): boolean {
    const { words } = this.host;
    this.showEngines();
    const nobody = this.activity.known && this.activity.engines.length === 0 && this.exchanges.length === 0;
    say(this.none, nobody ? words.__('No engine is on offer. Run engine.serve() in a notebook, then ask here.') : '');
    const others = this.activity.followUps.findLast((event) => !this.exchanges.some(({ id }) => id === event.request_id));
    if (this.suggested.matches(':hover, :focus-within')) {
      this.host.refresh(1_000); // so that the list does not change while the user clicks
    } else if (others !== this.suggestedId) {
      this.suggestedId = others;
      this.suggested.replaceChildren();
      if (others) {
        const name = others.origin?.name ?? '';
        this.suggested.append(
          h('div', { class: 'rk-quiet' }, name ? words.__('Suggested by %1', name) : words.__('You might ask')),
          showChips(others.questions.slice(0, 5), (question) => this.choose(question, others.index)),
        );
      }
    }
    // Suggestions for other questions do not help in a conversation, even less if they are already on the page.
    const last = this.exchanges.at(-1);
    const isNew = others && (!last || Date.parse(others.time) > (last.at ?? 0));
    this.suggested.hidden = !isNew || Boolean(last?.followUps.includes(others.questions[0]));
    if (!this.begun) {
      this.begun = true;
      this.log.scrollTop = this.log.scrollHeight; // scroll to the newest
    }
    return true;
  }

  // ------------------------------------------------------------------------------------ asking

  private choose(question: string, index: string | undefined): void {
    if (this.stop) {
      return;
    }
    this.events.chosen?.(question);
    void this.ask(question, this.engine.value === '' && index ? { index } : this.context());
  }

  /** If the engine's kernel has ended, the selected engine is used instead. */
  private isOnOffer(engine: unknown): boolean {
    return engine === undefined || this.activity.engines.some(({ id }) => id === engine);
  }

  private context(): Record<string, unknown> {
    return this.engine.value ? { engine: this.engine.value } : {};
  }

  private submit(): void {
    const question = this.question.value.trim();
    if (question && !this.stop) {
      this.question.value = '';
      void this.ask(question, this.context());
    }
  }

  private async ask(question: string, context: Record<string, unknown>): Promise<void> {
    if (this.stop) {
      return; // one question at a time: the button is now Stop
    }
    const { words } = this.host;
    const exchange: Exchange = { id: newId(), question, context, at: Date.now(), followUps: [] };
    this.exchanges = [...this.exchanges, exchange].slice(-MAX_EXCHANGES);
    this.stop = new AbortController();
    this.button.textContent = words.__('Stop');
    this.showExchanges();
    const element = this.shown.get(exchange.id)!;
    this.log.scrollTop = this.log.scrollHeight;
    element.wait(this.channel.isOpen);
    try {
      const { signal } = this.stop;
      const onDelta = (piece: string): void => this.add(element, piece);
      exchange.answer = await this.channel.ask(question, { context, id: exchange.id, signal, onDelta });
      this.announcer.say(words.__('Answer: %1', exchange.answer.answer.slice(0, 500)));
    } catch (error) {
      const { code, message } = error as AskError;
      exchange.error = { code: String(code), message: String(message) };
      this.announcer.say(exchange.error.message);
    } finally {
      this.stop = null;
      this.button.textContent = words.__('Ask');
    }
    this.store();
    const isFollowed = this.isAtEnd();
    this.showExchanges();
    if (isFollowed) {
      // Scroll to the question: an answer is read from its beginning.
      this.log.scrollTop = element.element.offsetTop;
    }
    if (exchange.answer) {
      this.events.answered?.(question, exchange.answer);
    }
  }

  // ----------------------------------------------------------------------------------- showing

  /** Show a piece of an answer; all pieces between two frames cost one layout. */
  private add(element: ExchangeElement, piece: string): void {
    this.pieces.push([element, piece]);
    if (this.pieces.length === 1) {
      setTimeout(() => {
        const pieces = this.pieces.splice(0);
        this.following(() => pieces.forEach(([element, piece]) => element.add(piece)));
      }, 50);
    }
  }

  /** Change the log, and stay at its end if it was scrolled to the end. */
  private following(change: () => void): void {
    const atEnd = this.isAtEnd();
    change();
    if (atEnd) {
      this.log.scrollTop = this.log.scrollHeight;
    }
  }

  private isAtEnd(): boolean {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
  }

  private showExchanges(): void {
    for (const exchange of this.exchanges) {
      const element = this.shown.get(exchange.id) ?? new ExchangeElement(exchange, this.host);
      this.shown.set(exchange.id, element);
      element.show((question) => {
        this.events.chosen?.(question);
        void this.ask(question, this.isOnOffer(exchange.context.engine) ? exchange.context : this.context());
      });
    }
    for (const id of [...this.shown.keys()].filter((id) => !this.exchanges.some((exchange) => exchange.id === id))) {
      this.shown.delete(id);
    }
    arrange(
      this.log,
      this.exchanges.map(({ id }) => this.shown.get(id)!.element),
    );
    this.log.hidden = this.exchanges.length === 0;
    this.clear.hidden = this.exchanges.length === 0;
  }

  private showEngines(): void {
    const { engines } = this.activity;
    const { words } = this.host;
    const names = engines.map((engine) => [engine.id, nameOf(engine)]);
    if (this.chosen && !engines.some(({ id }) => id === this.chosen)) {
      // A restarting server briefly has no engines; another corpus must not be selected instead.
      names.push([this.chosen, words.__('%1 (not on offer now)', this.engine.selectedOptions[0]?.dataset.name)]);
    }
    if (JSON.stringify(names) === this.engines) {
      return; // do not close an open list
    }
    this.engines = JSON.stringify(names);
    const option = (value: string, text: string): HTMLOptionElement => {
      const name = engines.find(({ id }) => id === value);
      return h('option', { value, 'data-name': name ? nameOf(name) : text }, text);
    };
    this.engine.replaceChildren(
      option('', words.__('Newest engine')),
      ...names.map(([id, name]) => option(id, name)),
    );
    this.engine.value = this.chosen;
    set(this.engine, 'title', this.engine.selectedOptions[0]?.textContent ?? '');
  }

  // ----------------------------------------------------------------------------------- keeping

  /** If the page closes before the answer arrives, the question is kept so that it can be asked again. */
  private keepPending(): void {
    const pending = this.stop && this.exchanges.at(-1);
    if (pending && !pending.answer) {
      const message = this.host.words.__('The page was closed before the answer came. Ask again.');
      pending.error = { code: 'CONNECTION_LOST', message };
      this.store();
    }
  }

  private forget(): void {
    const gone = this.exchanges.slice(0, this.stop ? -1 : undefined).map(({ id }) => id);
    this.exchanges = this.stop ? this.exchanges.slice(-1) : [];
    this.store(gone);
    this.showExchanges();
    this.question.focus();
    this.host.refresh();
  }

  /** Store the exchanges, merged with those of other tabs and widgets; exchanges cleared elsewhere stay cleared. */
  private store(gone: readonly string[] = []): void {
    const before = this.stored;
    const others = this.restore().filter(({ id }) => !gone.includes(id));
    const cleared = new Set([...before].filter((id) => !this.stored.has(id)));
    const ours = this.exchanges.filter((exchange) => (exchange.answer ?? exchange.error) && !cleared.has(exchange.id));
    const ids = new Set(ours.map(({ id }) => id));
    let kept = [...others.filter(({ id }) => !ids.has(id)), ...ours].slice(-MAX_EXCHANGES);
    kept = kept.filter((exchange) => JSON.stringify(exchange).length < MAX_STORED / 5);
    this.stored = new Set(kept.map(({ id }) => id));
    let text = JSON.stringify(kept);
    while (text.length > MAX_STORED && kept.length > 1) {
      kept = kept.slice(1);
      text = JSON.stringify(kept);
    }
    try {
      localStorage.setItem(this.host.storageKey, text);
    } catch {
      // Storage is full or not permitted: keep them in memory until the page is closed.
    }
  }

  private restore(): Exchange[] {
    try {
      const stored: unknown = JSON.parse(localStorage.getItem(this.host.storageKey) ?? '[]');
      const exchanges = Array.isArray(stored) ? stored.filter(isExchange).slice(-MAX_EXCHANGES) : [];
      this.stored = new Set(exchanges.map(({ id }) => id));
      return exchanges;
    } catch {
      this.stored = new Set();
      return [];
    }
  }
}

function nameOf(engine: Engine): string {
  const from = engine.origin?.name ? ` (${engine.origin.name})` : '';
  return `${engine.index} · ${engine.llm}${from}`;
}
