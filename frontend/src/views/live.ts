/** All views and the connection bar in one element, for the side panel and the widget. */

import { Activity } from '../client/activity.js';
import { type AskEvents, AskView, type Channel } from './ask.js';
import { ConnectionBar } from './connection.js';
import { h, set } from './dom.js';
import { ExperimentsView } from './experiments.js';
import type { Host } from './host.js';
import type { ListenerMessage } from '../client/messages.js';
import type { ConnectionState } from '../client/socket.js';
import { TasksView } from './tasks.js';
import { Format, type Words, languageTag } from './words.js';

export type ViewName = 'activity' | 'ask' | 'experiments';

export interface LiveOptions extends Pick<Host, 'canOpenOrigin' | 'openOrigin' | 'canOpenSource' | 'openSource'>, AskEvents {
  words: Words;
  language: string;
  storageKey: string;
  channel: Channel & { wake(): void };
  views?: readonly ViewName[];
}

export class LiveView {
  readonly element: HTMLElement;
  readonly activity = new Activity();
  /** Whether messages come from the kernel instead of the socket. */
  viaKernel = false;
  /** Whether this is a saved page, without updates until the kernel responds. */
  saved = false;
  private readonly host: Host;
  private readonly bar: ConnectionBar;
  private readonly ask: AskView;
  private readonly views: Map<ViewName, { element: HTMLElement; render(): boolean }>;
  private readonly tabs = new Map<ViewName, HTMLButtonElement>();
  private view: ViewName;
  private state: ConnectionState = { status: 'connecting' };
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private timerAt = Infinity;
  private restsUntil = 0;
  private readonly ended = new AbortController();
  /** Detects when a collapsed panel or a notebook's tab becomes visible. */
  private readonly observer = new IntersectionObserver(() => this.refresh());

  constructor(options: LiveOptions) {
    const { words, views = ['activity', 'ask', 'experiments'] } = options;
    this.host = {
      ...options,
      format: new Format(words, options.language),
      ended: this.ended.signal,
      refresh: (afterMs) => this.refresh(afterMs),
    };
    this.bar = new ConnectionBar(this.host, () => options.channel.wake());
    this.ask = new AskView(this.activity, this.host, options.channel, options);
    const all = {
      activity: new TasksView(this.activity, this.host),
      ask: this.ask,
      experiments: new ExperimentsView(this.activity, this.host),
    };
    this.views = new Map(views.map((name) => [name, all[name]]));
    this.view = views[0];
    const titles = {
      activity: words.__('Activity'),
      ask: words.__('Ask'),
      experiments: words.__('Experiments'),
    };
    const id = `rk-${Math.random().toString(36).slice(2)}`;
    for (const name of views) {
      const tab = h('button', { type: 'button', role: 'tab', id: `${id}-${name}`, class: 'rk-tab' }, titles[name]);
      set(tab, 'aria-controls', `${id}-${name}-view`);
      tab.addEventListener('click', () => this.show(name));
      tab.addEventListener('keydown', (event) => this.moveTab(event));
      this.tabs.set(name, tab);
      const { element } = this.views.get(name)!;
      set(element, 'role', 'tabpanel');
      set(element, 'id', `${id}-${name}-view`);
      set(element, 'aria-labelledby', `${id}-${name}`);
    }
    const tabs = h('div', { role: 'tablist', class: 'rk-tabs' }, ...this.tabs.values());
    tabs.hidden = views.length < 2;
    this.element = h(
      'div',
      // Ignored by MathJax, and keyboard events do not reach the surrounding notebook.
      { class: 'rk-live tex2jax_ignore mathjax_ignore', lang: languageTag(options.language) },
      this.bar.element,
      tabs,
      ...[...this.views.values()].map(({ element }) => element),
    );
    set(this.element, 'data-lm-suppress-shortcuts', 'true');
    document.addEventListener('visibilitychange', () => this.refresh(), { signal: this.ended.signal });
    this.observer.observe(this.element);
    this.show(this.view);
  }

  /** Apply a message from the socket or the kernel. */
  apply(message: ListenerMessage): void {
    this.ask.apply(message);
    if (this.activity.apply(message)) {
      this.refresh();
    }
  }

  /** Show the state of the connection. */
  become(state: ConnectionState): void {
    this.state = state;
    this.refresh();
  }

  show(view: ViewName): void {
    this.view = view;
    for (const [name, tab] of this.tabs) {
      set(tab, 'aria-selected', String(name === view));
      set(tab, 'tabindex', name === view ? 0 : -1);
      this.views.get(name)!.element.hidden = name !== view;
    }
    this.refresh();
  }

  /** Focus the question field or the tab. */
  focus(): void {
    if (this.view === 'ask') {
      this.ask.focus();
    } else {
      this.tabs.get(this.view)!.focus();
    }
  }

  dispose(): void {
    this.ended.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.timerAt = -Infinity;
    this.element.remove();
  }

  private moveTab(event: KeyboardEvent): void {
    const names = [...this.tabs.keys()];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next =
      event.key === 'Home'
        ? names[0]
        : event.key === 'End'
          ? names.at(-1)
          : step && names[(names.indexOf(this.view) + step + names.length) % names.length];
    if (next) {
      event.preventDefault();
      this.show(next);
      this.tabs.get(next)!.focus();
    }
  }

  /** Render at most once per frame and with limited CPU use; an invisible page does nothing. */
  private refresh(afterMs = 0): void {
    const now = performance.now();
    const at = Math.max(now + afterMs, this.restsUntil);
    if (at > now) {
      if (at < this.timerAt) {
        clearTimeout(this.timer);
        this.timerAt = at;
        this.timer = setTimeout(() => {
          this.timerAt = Infinity;
          this.refresh();
        }, at - now);
      }
    } else if (!this.frame && !document.hidden && !this.ended.signal.aborted) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.render();
      });
    }
  }

  private render(): void {
    if (!this.element.checkVisibility()) {
      this.refresh(1_000); // the observer does not fire if the page was hidden only for a moment
      return;
    }
    const began = performance.now();
    this.bar.render(this.state, this.viaKernel ? 'kernel' : this.saved ? 'saved' : 'socket');
    let isAll = true;
    try {
      isAll = this.views.get(this.view)!.render();
    } catch (error) {
      console.error('ragkit: a view could not be drawn', error); // the next message triggers another attempt
    }
    // Leave time for the rest of the page: use at most a quarter of it.
    this.restsUntil = performance.now() + 3 * (performance.now() - began);
    if (!isAll) {
      this.refresh();
    }
  }
}
