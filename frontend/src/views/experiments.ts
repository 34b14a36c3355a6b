/** The experiments view: each experiment's leaderboard, with the newest row highlighted. */

import { type Activity, type Task, doneShare, taskKey } from '../client/activity.js';
import { arrange, h, say, set } from './dom.js';
import type { Host } from './host.js';
import type { ExperimentResult } from '../client/messages.js';

const MAX_COLUMNS = 20;
const MAX_CELL = 200;

export class ExperimentsView {
  readonly element: HTMLElement;
  private readonly empty = h('p', { class: 'rk-empty' });
  private readonly list = h('div');
  private readonly boards = new Map<string, Board>();

  constructor(
    private readonly activity: Activity,
    private readonly host: Host,
  ) {
    this.element = h('div', { class: 'rk-view rk-experiments' }, this.empty, this.list);
  }

  render(): boolean {
    const { results } = this.activity;
    const keys = [...results.keys()].reverse();
    for (const key of [...this.boards.keys()].filter((key) => !results.has(key))) {
      this.boards.delete(key);
    }
    for (const key of keys) {
      const board = this.boards.get(key) ?? new Board(this.host);
      this.boards.set(key, board);
      const result = results.get(key)!;
      board.show(result, this.activity.live.get(taskKey(result)) ?? this.activity.ended.get(taskKey(result)));
    }
    arrange(
      this.list,
      keys.map((key) => this.boards.get(key)!.element),
    );
    const nothing = this.host.words.__('No experiment has measured anything yet. Its rows show here as they land.');
    say(this.empty, keys.length ? '' : nothing);
    return true;
  }
}

class Board {
  readonly element: HTMLElement;
  private readonly title = h('h3');
  private readonly note = h('p', { class: 'rk-quiet' });
  private readonly caption = h('caption', { class: 'rk-unseen' });
  private readonly head = h('tr');
  private readonly body = h('tbody');
  private readonly scroll: HTMLElement;
  private result: ExperimentResult | null = null;

  constructor(private readonly host: Host) {
    const table = h('table', {}, this.caption, h('thead', {}, this.head), this.body);
    // Focusable, so that it can be scrolled with the keyboard.
    this.scroll = h('div', { class: 'rk-scroll', tabindex: 0, role: 'group' }, table);
    this.element = h('article', { class: 'rk-board' }, this.title, this.note, this.scroll);
  }

  show(result: ExperimentResult, task: Task | undefined): void {
    const { words, format } = this.host;
    say(this.title, result.experiment);
    const share = task && doneShare(task);
    const state = task?.state === 'running' && typeof share === 'number' ? `${Math.floor(100 * share)} %` : '';
    say(this.note, [result.origin?.name ?? '', format.when(result.time), state].filter(Boolean).join(' · '));
    if (result === this.result) {
      return;
    }
    say(this.caption, words.__('Leaderboard of %1', result.experiment));
    const rows = result.leaderboard.length ? result.leaderboard : [result.row];
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].slice(0, MAX_COLUMNS);
    const newest = JSON.stringify(result.row);
    this.head.replaceChildren(...columns.map((name) => h('th', { scope: 'col' }, cut(name))));
    this.body.replaceChildren(
      ...rows.map((row) =>
        h(
          'tr',
          { class: JSON.stringify(row) === newest ? 'rk-new' : false },
          ...columns.map((name) => this.cell(Object.hasOwn(row, name) ? row[name] : undefined)),
        ),
      ),
    );
    set(this.scroll, 'aria-label', result.experiment);
    this.result = result;
  }

  private cell(value: unknown): HTMLElement {
    if (typeof value === 'number') {
      return h('td', { class: 'rk-number' }, this.host.format.measure(value));
    }
    const text = value === null || value === undefined ? '' : typeof value === 'string' ? value : JSON.stringify(value);
    return h('td', {}, cut(text));
  }
}

function cut(text: string): string {
  return text.length > MAX_CELL ? `${text.slice(0, MAX_CELL)}…` : text;
}
