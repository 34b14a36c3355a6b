/** One question with its answer: its stored form and its element. */

import { h, say } from './dom.js';
import type { Host } from './host.js';
import type { ResponseContent } from '../client/messages.js';
import { showAnswer, showChips } from './passages.js';

/** A question and its outcome. */
export interface Exchange {
  readonly id: string;
  readonly question: string;
  readonly context: Record<string, unknown>;
  /** The time of the question, in milliseconds since 1970. */
  readonly at?: number;
  answer?: ResponseContent;
  error?: { code: string; message: string };
  followUps: string[];
}

/** Validate stored data, which another version may have written. */
export function isExchange(value: Partial<Exchange> | null): value is Exchange {
  return (
    typeof value?.id === 'string' &&
    typeof value.question === 'string' &&
    Array.isArray(value.followUps) &&
    (value.answer === undefined || (typeof value.answer.answer === 'string' && Array.isArray(value.answer.sources)))
  );
}

/** An exchange on the page; updates only the parts that changed. */
export class ExchangeElement {
  readonly element: HTMLElement;
  private readonly preview = h('div', { class: 'rk-text', 'aria-busy': 'true' });
  private readonly waiting: HTMLElement;
  private readonly rest = h('div');
  private state = '';

  constructor(
    private readonly exchange: Exchange,
    private readonly host: Host,
  ) {
    this.waiting = h('div', { class: 'rk-quiet rk-waiting' });
    const question = h('div', { class: 'rk-asked' }, exchange.question);
    this.element = h('article', { class: 'rk-exchange' }, question, this.waiting, this.preview, this.rest);
  }

  /** Show what the exchange is waiting for. */
  wait(isOpen: boolean): void {
    const { words } = this.host;
    say(this.waiting, isOpen ? words.__('Looking for passages…') : words.__('Waiting for the connection…'));
  }

  /** Append a piece of the answer. */
  add(piece: string): void {
    this.waiting.hidden = true;
    this.preview.append(piece);
  }

  show(ask: (question: string) => void): void {
    const { answer, error, followUps } = this.exchange;
    const state = `${answer ? 'answer' : error ? 'error' : ''} ${followUps.join('\n')}`;
    if (state === this.state || (!answer && !error)) {
      return;
    }
    this.state = state;
    this.waiting.hidden = this.preview.hidden = true;
    if (error) {
      const code = h('span', { class: 'rk-quiet' }, error.code);
      this.rest.replaceChildren(h('div', { class: 'rk-error' }, error.message, ' ', code));
    } else if (answer) {
      if (!this.rest.querySelector('.rk-answer')) {
        try {
          this.rest.replaceChildren(showAnswer(answer, this.host));
        } catch (problem) {
          console.error('ragkit: an answer could not be drawn', problem); // for example stored by another version
          this.rest.replaceChildren(h('div', { class: 'rk-text rk-answer' }, answer.answer));
        }
      }
      this.rest.querySelector('.rk-chips')?.remove();
      if (followUps.length) {
        const chips = showChips(followUps, ask);
        chips.prepend(h('div', { class: 'rk-quiet rk-chips-title' }, this.host.words.__('You might ask')));
        this.rest.append(chips);
      }
    }
  }
}
