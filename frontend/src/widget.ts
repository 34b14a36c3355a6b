/**
 * The notebook widget, for anywidget. It listens to the socket itself, in the browser, so it goes on while the
 * kernel is busy. Where no server can be reached (VS Code, Colab) the kernel tells what it does itself, over the
 * widget's own channel; and in a saved page that nobody answers, the state that was saved is shown.
 */

import { hasEnded } from './activity.js';
import { pageConfig } from './addresses.js';
import { h } from './dom.js';
import { Live, type ViewName } from './live.js';
import type { ClientMessage, ListenerMessage, ResponseContent } from './messages.js';
import { serverPath } from './paths.js';
import { AskError, type AskOptions, type ConnectionState, RagkitSocket } from './socket.js';
import { pageLanguage, words } from './words.js';

/** What we use of anywidget's model. */
interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (content: FromKernel) => void): void;
  off(event: string, callback: (content: FromKernel) => void): void;
}

type FromKernel = { kind: 'attached' } | { kind: 'message'; message: ListenerMessage };

/** The kernel as a channel: the same messages, over the widget's. */
class KernelChannel {
  isThere = false;
  private readonly asked = new Map<string, { options: AskOptions; settle: (message: ListenerMessage) => void }>();

  constructor(
    private readonly model: Model,
    private readonly changed: () => void,
    private readonly onMessage: (message: ListenerMessage) => void,
  ) {
    model.on('msg:custom', this.receive);
  }

  /** Say that somebody looks; `listen`: and wants to be told what happens. */
  attach(listen: boolean): void {
    this.model.send({ kind: listen ? 'listen' : 'attach' });
  }

  ask(question: string, options: AskOptions): Promise<ResponseContent> {
    const id = options.id!;
    return new Promise((resolve, reject) => {
      this.asked.set(id, {
        options,
        settle: (message) => {
          this.asked.delete(id);
          if (message.type === 'response') {
            resolve(message.content);
          } else if (message.type === 'error') {
            reject(new AskError(message.content.code, message.content.message));
          }
        },
      });
      this.send({ type: 'query', id, content: { question, context: options.context } });
      options.signal?.addEventListener('abort', () => this.send({ type: 'cancel', id }));
    });
  }

  close(): void {
    this.model.off('msg:custom', this.receive);
  }

  private send(message: ClientMessage): void {
    this.model.send({ kind: 'message', message });
  }

  private readonly receive = (content: FromKernel): void => {
    if (content.kind === 'attached') {
      this.isThere = true;
      this.changed();
    } else if (content.kind === 'message') {
      const { message } = content;
      const asked = 'id' in message && message.id ? this.asked.get(message.id) : undefined;
      if (message.type === 'response_delta') {
        asked?.options.onDelta?.(message.content.delta);
      } else if (asked) {
        asked.settle(message);
      } else {
        this.onMessage(message);
      }
    }
  };
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const language = String(model.get('language') || pageLanguage());
  const texts = words(language);
  const config = pageConfig();
  const isJupyter = Boolean(config.baseUrl);
  let wasOpen = false;

  const socket = new RagkitSocket({
    start: false,
    onMessage: (message) => {
      if (message.type === 'snapshot' || message.type === 'gap') {
        live.viaKernel = false; // the hub knows more
      }
      if (!live.viaKernel) {
        live.apply(message);
      }
    },
    onState: (state) => {
      wasOpen ||= state.status === 'open';
      if (state.status === 'waiting' && !wasOpen) {
        kernel.attach(true);
      }
      show(state);
    },
  });
  const show = (state: ConnectionState): void => {
    live.viaKernel = kernel.isThere && !wasOpen;
    live.become(state);
  };
  const kernel = new KernelChannel(
    model,
    () => show(socket.state),
    (message) => !wasOpen && live.apply(message),
  );
  const live: Live = new Live({
    words: texts,
    language,
    storageKey: `ragkit:ask:${config.baseUrl ?? location.pathname}`,
    views: model.get('views') as ViewName[],
    channel: {
      ask: (question, options) =>
        (live.viaKernel ? kernel.ask(question, options) : socket.ask(question, options)),
      wake: () => socket.wake(),
    },
    answered: (question, answer) => {
      model.set('question', question);
      model.set('answer', answer);
      model.save_changes();
    },
    chosen: (question) => {
      model.set('follow_up', question);
      model.save_changes();
    },
    canOpenOrigin: ({ path }) => isJupyter && serverPath(path) !== null,
    openOrigin: ({ path }) => openFile(serverPath(path)),
    canOpenSource: ({ source }) => isJupyter && serverPath(source) !== null,
    openSource: ({ source }) => openFile(serverPath(source)),
  });
  const holder = h('div', { class: 'rk-widget' }, live.element);
  el.append(holder);

  const saved = model.get('_snapshot') as ListenerMessage;
  if (saved?.type === 'snapshot') {
    // Until the hub or the kernel says more; a saved page has nobody who does.
    const tasks = isJupyter ? saved.tasks.filter(hasEnded) : saved.tasks;
    live.apply({ ...saved, tasks });
  }
  if (isJupyter) {
    kernel.attach(false);
    socket.start();
  } else {
    live.saved = true;
    kernel.attach(true);
  }
  return () => {
    kernel.close();
    socket.close();
    live.dispose();
  };
}

/** In a tab of its own: a widget cannot drive JupyterLab. */
function openFile(path: string | null): void {
  if (path !== null) {
    const file = path.split('/').map(encodeURIComponent).join('/');
    window.open(`${pageConfig().baseUrl}lab/tree/${file}`, '_blank', 'noopener');
  }
}

export default { render };
