/** The connection bar: status, problem and solution. */

import { h, say, set } from './dom.js';
import type { Host } from './host.js';
import type { ConnectionState, Problem } from '../client/socket.js';
import type { Words } from './words.js';

export class ConnectionBar {
  readonly element: HTMLElement;
  private readonly text = h('span', { role: 'status' });
  private readonly countdown = h('span', { class: 'rk-quiet', 'aria-hidden': 'true' });
  private readonly advice = h('p');
  private readonly again: HTMLButtonElement;

  constructor(
    private readonly host: Host,
    wake: () => void,
  ) {
    const { words } = host;
    const again = (): void => {
      this.element.focus(); // the button disappears
      wake();
    };
    this.again = h('button', { type: 'button', class: 'rk-button', click: again }, words.__('Try again'));
    const line = h('div', { class: 'rk-line' }, h('span', { class: 'rk-dot' }), this.text, this.countdown, this.again);
    this.element = h('div', { class: 'rk-connection', tabindex: -1 }, line, this.advice);
  }

  render(state: ConnectionState, via: 'socket' | 'kernel' | 'saved'): void {
    const { words, format } = this.host;
    const isOpen = via === 'kernel' || (via === 'socket' && state.status === 'open');
    const isSaved = via === 'saved';
    set(this.element, 'data-status', isOpen ? 'open' : isSaved ? 'saved' : state.status);
    set(this.element, 'data-problem', isOpen ? undefined : state.problem);
    const kernel = words.__('Live from this kernel');
    say(this.text, via === 'kernel' ? kernel : isSaved ? words.__('As it was saved') : statusText(state, words));
    const left = state.retryAt && state.status === 'waiting' ? Math.max(0, state.retryAt - Date.now()) / 1000 : 0;
    say(this.countdown, left >= 1 && !isOpen ? words.__('again in %1', format.seconds(left)) : '');
    this.again.hidden = isOpen || state.status !== 'waiting';
    say(this.advice, !isOpen && state.problem ? adviceText(state.problem, words) : '');
    if (state.status === 'waiting' && !isOpen) {
      this.host.refresh(1_000);
    }
  }
}

/** The status of the connection in a few words. */
export function statusText(state: ConnectionState, words: Words): string {
  switch (state.status) {
    case 'open':
      return words.__('Live');
    case 'closed':
      return words.__('Closed');
    case 'connecting':
      // Do not change the text at every attempt, because screen readers would announce it.
      return state.problem ? words.__('Not connected') : words.__('Connecting…');
    case 'waiting':
      return words.__('Not connected');
  }
}

/** The problem and what to do. */
export function adviceText(problem: Problem, words: Words): string {
  switch (problem) {
    case 'offline':
      return words.__('This computer has no network. It goes on by itself when there is one.');
    case 'unreachable':
      return words.__('The server does not answer. If it has stopped, start it again; nothing is lost.');
    case 'no_ragkit':
      return words.__(
        'This server runs without ragkit. Install ragkit where the server runs and restart it ("jupyter server extension list" should name ragkit_server).',
      );
    case 'not_authorized':
      return words.__('The server does not let you in. Reload the page to log in again; your user needs the right to read ragkit.');
    case 'blocked':
      return words.__(
        'The server answers, but its WebSocket does not: a proxy in between, or a page whose origin is not allowed (ServerApp.allow_origin).',
      );
    case 'silent':
      return words.__('The connection went silent, as after a sleep. Reconnecting; nothing is lost.');
    case 'stopping':
      return words.__('The server has stopped. It goes on by itself when the server is back; nothing is lost.');
    case 'lost':
      return words.__('The connection was lost. Reconnecting; nothing is lost.');
  }
}
