/** The activity view: every task of every notebook, run and script. */

import { type Activity, type Task, doneShare, hasEnded, taskKey } from '../client/activity.js';
import { Announcer, arrange, h, say, set } from './dom.js';
import type { Host } from './host.js';
import type { Failure } from '../client/messages.js';

/** How long an ended task stays in place before it is collapsed, so that the user sees it end. */
const LINGER_MS = 15_000;
const MAX_RUNNING_SHOWN = 200;
const MAX_ENDED_SHOWN = 50;
/** Time per frame for building rows; the remaining rows are built in the next frame. */
const BUDGET_MS = 8;

export class TasksView {
  readonly element: HTMLElement;
  private readonly announcer = new Announcer();
  private readonly running = h('ul', { class: 'rk-tasks' });
  private readonly more = h('p', { class: 'rk-quiet' });
  private readonly empty = h('p', { class: 'rk-empty' });
  private readonly folded = h('ul', { class: 'rk-tasks' });
  private readonly foldedTitle = h('summary');
  private readonly fold = h('details', { class: 'rk-fold' }, this.foldedTitle, this.folded);
  private readonly rows = new Map<string, Row>();
  private readonly endedAt = new Map<string, number>();
  private known = false;

  constructor(
    private readonly activity: Activity,
    private readonly host: Host,
  ) {
    this.fold.addEventListener('toggle', () => this.host.refresh());
    this.element = h(
      'div',
      { class: 'rk-view rk-activity' },
      this.announcer.element,
      this.empty,
      this.running,
      this.more,
      this.fold,
    );
  }

  /** Render the tasks; return false if some remain for the next frame. */
  render(): boolean {
    const { words } = this.host;
    const started = performance.now();
    const shown = this.shown();
    const keep = new Set<string>();
    let isAll = true;
    const draw = (tasks: Task[], compact: boolean): HTMLElement[] =>
      tasks.flatMap((task) => {
        const key = taskKey(task) + (compact ? ' compact' : '');
        let row = this.rows.get(key);
        if (!row) {
          if (performance.now() - started > BUDGET_MS) {
            isAll = false;
            return [];
          }
          row = new Row(this.host, compact);
          this.rows.set(key, row);
        }
        keep.add(key);
        row.show(task);
        return [row.element];
      });
    arrange(this.running, draw(shown.slice(0, MAX_RUNNING_SHOWN), false));
    const hidden = shown.length - MAX_RUNNING_SHOWN;
    say(this.more, hidden > 0 ? words._n('and %1 more task', 'and %1 more tasks', hidden) : '');

    const inPlace = new Set(shown);
    const ended = [...this.activity.ended.values()].reverse().filter((task) => !inPlace.has(task));
    this.fold.hidden = ended.length === 0;
    const failed = ended.filter((task) => task.state === 'failed').length;
    const title = words._n('%1 finished task', '%1 finished tasks', ended.length);
    say(this.foldedTitle, failed ? `${title}, ${words._n('%1 failed', '%1 failed', failed)}` : title);
    arrange(this.folded, this.fold.open ? draw(ended.slice(0, MAX_ENDED_SHOWN), true) : []);

    say(this.empty, shown.length || ended.length ? '' : this.nothing());
    for (const key of [...this.rows.keys()].filter((key) => !keep.has(key))) {
      this.rows.delete(key);
    }
    this.announce(shown);
    return isAll;
  }

  private nothing(): string {
    const { words } = this.host;
    return this.activity.known
      ? words.__('Nothing runs. What a notebook or a batch run indexes shows here: engine.index("docs")')
      : words.__('Waiting for the server to say what runs.');
  }

  /** Running and recently ended tasks, newest first. */
  private shown(): Task[] {
    const now = Date.now();
    for (const [key, task] of this.activity.ended) {
      if (!this.endedAt.has(key)) {
        // Tasks that ended before the page was opened are not recent.
        this.endedAt.set(key, this.known && this.rows.has(key) ? now : 0);
        this.announceEnd(task);
      }
    }
    for (const key of this.endedAt.keys()) {
      if (!this.activity.ended.has(key)) {
        this.endedAt.delete(key);
      }
    }
    this.known ||= this.activity.known;
    const lingering = [...this.activity.ended.values()].filter((task) => {
      const key = taskKey(task);
      const endedAt = this.endedAt.get(key) ?? 0;
      const left = endedAt + LINGER_MS - now;
      const isRead = endedAt > 0 && this.rows.get(key)?.isRead();
      if (left > 0 || isRead) {
        this.host.refresh(Math.max(left, 1_000) + 50);
      }
      return left > 0 || isRead;
    });
    const place = (task: Task): number => this.activity.began.get(taskKey(task)) ?? 0;
    return [...this.activity.live.values(), ...lingering].sort((a, b) => place(b) - place(a));
  }

  private announceEnd(task: Task): void {
    if (this.known && this.rows.has(taskKey(task))) {
      this.announcer.say(`${titleOf(task, this.host)}: ${stateOf(task, this.host)}`, true);
    }
  }

  private announce(tasks: Task[]): void {
    const task = tasks.find((task) => task.state === 'running');
    const share = task && doneShare(task);
    if (task && typeof share === 'number') {
      this.announcer.say(`${titleOf(task, this.host)}: ${Math.round(100 * share)} %`);
    }
  }
}

/** One task; updates only the parts that changed. */
class Row {
  readonly element: HTMLLIElement;
  private readonly title = h('span', { class: 'rk-title' });
  private readonly state = h('span', { class: 'rk-state' });
  private readonly fill = h('div', { class: 'rk-fill' });
  private readonly bar = h('div', { class: 'rk-bar', role: 'progressbar' }, this.fill);
  private readonly numbers = h('div', { class: 'rk-numbers' });
  private readonly current = h('div', { class: 'rk-current' });
  private readonly message = h('div', { class: 'rk-message' });
  private readonly failuresTitle = h('summary');
  private readonly failures = h('ul');
  private readonly failuresFold = h('details', { class: 'rk-failures' }, this.failuresTitle, this.failures);
  private readonly origin = h('button', { class: 'rk-link', type: 'button' });
  private readonly where = h('span', { class: 'rk-quiet' });
  private task: Task | null = null;
  private listed = -1;

  constructor(
    private readonly host: Host,
    private readonly compact: boolean,
  ) {
    this.origin.addEventListener('click', () => this.task?.origin && this.host.openOrigin?.(this.task.origin));
    this.failuresFold.addEventListener('toggle', () => this.listFailures());
    this.element = h(
      'li',
      { class: `rk-task${compact ? ' rk-compact' : ''}` },
      h('div', { class: 'rk-head' }, this.title, this.state),
      this.bar,
      this.numbers,
      this.current,
      this.message,
      this.failuresFold,
      h('div', { class: 'rk-foot' }, this.origin, this.where),
    );
  }

  /** Whether the user is interacting with it, so that it must not be removed. */
  isRead(): boolean {
    return this.failuresFold.open || this.element.contains(document.activeElement);
  }

  show(task: Task): void {
    if (task === this.task) {
      return;
    }
    this.task = task;
    const { host } = this;
    const { words, format } = host;
    const title = titleOf(task, host);
    const share = doneShare(task);
    set(this.element, 'data-state', task.state);
    set(this.element, 'data-task', task.task_id);
    say(this.title, title);
    say(this.state, stateOf(task, host));
    const percent = share === null ? undefined : Math.floor(100 * share);
    set(this.bar, 'aria-label', title);
    set(this.bar, 'aria-valuemin', 0);
    set(this.bar, 'aria-valuemax', 100);
    set(this.bar, 'aria-valuenow', percent);
    set(this.bar, 'aria-valuetext', percent === undefined ? words.__('not known yet') : `${percent} %`);
    this.bar.hidden = this.compact || (hasEnded(task) && share === null);
    this.fill.style.width = share === null ? '' : `${100 * share}%`;
    say(this.numbers, numbersOf(task, host).join(' · '));
    const document = task.type === 'indexing_progress' ? task.current_document : null;
    say(this.current, document && !hasEnded(task) ? words.__('reading %1', document) : '');
    set(this.current, 'title', document ?? undefined);
    say(this.message, task.message ?? '');
    const failed = task.type === 'indexing_progress' ? task.failures_total : 0;
    this.failuresFold.hidden = failed === 0;
    const unread = words._n('%1 file could not be read', '%1 files could not be read', failed);
    say(this.failuresTitle, unread);
    this.listFailures();
    const path = task.origin && host.openOrigin && host.canOpenOrigin?.(task.origin);
    this.origin.hidden = !path;
    const name = task.origin?.name ?? '';
    say(this.origin, path ? name : '');
    set(this.origin, 'title', path ? words.__('Open %1', task.origin?.path) : undefined);
    const when = hasEnded(task) ? format.when(task.time) : '';
    say(this.where, [path ? '' : name, kindOf(task, host), when].filter(Boolean).join(' · '));
  }

  private listFailures(): void {
    if (this.task?.type !== 'indexing_progress' || !this.failuresFold.open) {
      return;
    }
    const { failures, failures_total: total } = this.task;
    if (total === this.listed) {
      return; // the user may be selecting a path in it
    }
    this.listed = total;
    const item = ({ source, reason }: Failure): HTMLLIElement => h('li', {}, h('b', {}, source), ` ${reason}`);
    const rest = total - failures.length;
    const note = rest > 0 ? [h('li', {}, this.host.words._n('and %1 more', 'and %1 more', rest))] : [];
    this.failures.replaceChildren(...failures.map(item), ...note);
  }
}

function titleOf(task: Task, { words }: Host): string {
  return task.type === 'indexing_progress'
    ? words.__('Indexing %1', task.index)
    : words.__('Experiment %1', task.experiment);
}

function stateOf(task: Task, { words }: Host): string {
  const share = doneShare(task);
  switch (task.state) {
    case 'queued':
      return words.__('queued');
    case 'running':
      return share === null ? words.__('running') : `${Math.floor(100 * share)} %`;
    case 'done':
      return words.__('done');
    case 'failed':
      return words.__('failed');
    case 'cancelled':
      return words.__('cancelled');
  }
}

function kindOf(task: Task, { words }: Host): string {
  switch (task.origin?.kind) {
    case 'papermill':
      return words.__('batch run');
    case 'script':
      return words.__('script');
    case 'cli':
      return words.__('terminal');
    default:
      return '';
  }
}

function numbersOf(task: Task, { words, format }: Host): string[] {
  const parts: string[] = [];
  const add = (done: number, total: number | null, of: string, alone: string): void => {
    if (total !== null && total > 0) {
      parts.push(words.__(of, format.count(done), format.count(total)));
    } else if (done) {
      parts.push(words.__(alone, format.count(done)));
    }
  };
  if (task.type === 'indexing_progress') {
    add(task.documents_done, task.documents_total, '%1 of %2 documents', '%1 documents');
    add(task.chunks_done, task.chunks_total, '%1 of %2 passages', '%1 passages');
    if (task.rate && !hasEnded(task)) {
      parts.push(words.__('%1 passages a second', format.count(task.rate)));
    }
  } else {
    add(task.cells_done, task.cells_total, '%1 of %2 measured', '%1 measured');
  }
  if (task.eta_seconds !== null && !hasEnded(task)) {
    parts.push(words.__('%1 left', format.seconds(task.eta_seconds)));
  }
  return parts;
}
