/** The JupyterLab extension: the side panel, its commands, settings and status bar item. Also used by Notebook 7. */

import {
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin,
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import type { CodeEditor } from '@jupyterlab/codeeditor';
import { ServerConnection } from '@jupyterlab/services';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { LabIcon } from '@jupyterlab/ui-components';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { type Activity, doneShare } from './client/activity.js';
import { statusText } from './views/connection.js';
import { h, say, set } from './views/dom.js';
import { LiveView } from './views/live.js';
import type { Source } from './client/messages.js';
import { fileOf, serverPath } from './paths.js';
import { type ConnectionState, RagkitSocket } from './client/socket.js';
import type { Words } from './views/words.js';

const ID = 'ragkit-panel';

const icon = new LabIcon({
  name: 'ragkit:icon',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16">
<g class="jp-icon3" fill="none" stroke="#616161" stroke-width="2" stroke-linecap="round">
<path d="M5 4h9M5 9h6M5 14h5"/><circle cx="15" cy="14" r="4"/><path d="M18 17l3 3"/></g></svg>`,
});

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'ragkit-lab:panel',
  description: 'What every notebook and batch run indexes, answers to questions, and experiments, live.',
  autoStart: true,
  optional: [ICommandPalette, ILayoutRestorer, ISettingRegistry, IStatusBar, ITranslator],
  activate,
};

export default plugin;

function activate(
  app: JupyterFrontEnd,
  palette: ICommandPalette | null,
  restorer: ILayoutRestorer | null,
  registry: ISettingRegistry | null,
  statusBar: IStatusBar | null,
  translator: ITranslator | null,
): void {
  const words = (translator ?? nullTranslator).load('ragkit');
  const settings = ServerConnection.makeSettings();
  const open = (path: string | null): void => {
    if (path !== null) {
      void app.commands.execute('docmanager:open', { path });
    }
  };
  const socket: RagkitSocket = new RagkitSocket({
    url: settings.wsUrl,
    token: settings.appendToken ? settings.token : '',
    onMessage: (message) => (live.apply(message), status.tell(live.activity, socket)),
    onState: (state) => (live.become(state), status.tell(live.activity, socket)),
    start: false,
  });
  const live: LiveView = new LiveView({
    words,
    language: translator?.languageCode ?? 'en',
    storageKey: `ragkit:ask:${settings.baseUrl}`,
    channel: socket,
    canOpenOrigin: ({ path }) => serverPath(path) !== null,
    openOrigin: ({ path }) => open(serverPath(path)),
    canOpenSource: ({ source }) => serverPath(fileOf(source)) !== null,
    openSource: (source) => void openPassage(app, source),
  });

  const panel = new Panel(live);
  panel.id = ID;
  panel.addClass('rk-panel');
  panel.title.icon = icon;
  panel.title.caption = words.__('ragkit: live activity, questions and experiments');
  panel.node.setAttribute('role', 'region');
  panel.node.setAttribute('aria-label', 'ragkit');
  panel.node.append(live.element);
  app.shell.add(panel, 'right', { rank: 600 });
  restorer?.add(panel, ID);

  const status = new StatusItem(words, () => app.shell.activateById(ID));
  addCommands(app, palette, words, live, socket);
  void followSettings(app, registry, panel, statusBar, status);
  socket.start();
}

function addCommands(
  app: JupyterFrontEnd,
  palette: ICommandPalette | null,
  words: Words,
  live: LiveView,
  socket: RagkitSocket,
): void {
  const category = 'ragkit';
  const commands: [string, string, () => void][] = [
    ['ragkit:activity', words.__('Show what is being indexed'), () => live.show('activity')],
    ['ragkit:ask', words.__('Ask your documents'), () => live.show('ask')],
    ['ragkit:experiments', words.__('Show the leaderboard'), () => live.show('experiments')],
  ];
  for (const [command, label, show] of commands) {
    app.commands.addCommand(command, {
      label,
      icon,
      execute: () => {
        app.shell.activateById(ID);
        show();
      },
    });
    palette?.addItem({ command, category });
  }
  app.commands.addCommand('ragkit:reconnect', { label: words.__('Connect again'), execute: () => socket.wake() });
  palette?.addItem({ command: 'ragkit:reconnect', category });
}

async function followSettings(
  app: JupyterFrontEnd,
  registry: ISettingRegistry | null,
  panel: Widget,
  statusBar: IStatusBar | null,
  status: StatusItem,
): Promise<void> {
  let side = 'right';
  let isWanted = true;
  const changed = new Signal<StatusItem, void>(status);
  const follow = (settings?: ISettingRegistry.ISettings): void => {
    const wanted = String(settings?.composite.side ?? 'right');
    if (wanted !== side) {
      side = wanted;
      app.shell.add(panel, wanted, { rank: 600 });
    }
    isWanted = settings?.composite.statusBar !== false;
    changed.emit();
  };
  statusBar?.registerStatusItem('ragkit-lab:status', {
    item: status,
    align: 'left',
    rank: 20,
    isActive: () => isWanted,
    activeStateChanged: changed,
  });
  try {
    const settings = await registry?.load(plugin.id);
    settings?.changed.connect(() => follow(settings));
    follow(settings);
  } catch (problem) {
    console.warn('ragkit: the settings could not be read; the defaults hold', problem);
  }
}

/** Open a file and, if it is text that contains the quote, select the quote. */
async function openPassage(app: JupyterFrontEnd, source: Source): Promise<void> {
  const widget = await app.commands.execute('docmanager:open', { path: serverPath(fileOf(source.source)) });
  await widget?.context?.ready;
  const editor: CodeEditor.IEditor | undefined = widget?.content?.editor;
  const [start, end] = source.quotes[0] ?? [source.start, source.end];
  const quote = [...source.text].slice(start - source.start, end - source.start).join('');
  const at = editor?.model.sharedModel.getSource().indexOf(quote) ?? -1;
  if (editor && at >= 0) {
    const selection = { start: editor.getPositionAt(at)!, end: editor.getPositionAt(at + quote.length)! };
    editor.setSelection(selection);
    editor.revealSelection(selection);
  }
}

/** The views as a Lumino widget. */
class Panel extends Widget {
  constructor(private readonly live: LiveView) {
    super();
  }

  protected override onActivateRequest(): void {
    // Deferred, because the command palette restores the previous focus when it closes.
    setTimeout(() => this.live.focus(), 100);
  }
}

/** The status bar item with the running tasks; a click opens the panel. */
class StatusItem extends Widget {
  private readonly button: HTMLButtonElement;
  private frame = 0;

  constructor(
    private readonly words: Words,
    open: () => void,
  ) {
    super();
    this.button = h('button', { type: 'button', class: 'rk-status', click: open });
    set(this.button, 'title', words.__('Open ragkit'));
    this.node.append(this.button);
  }

  /** Update at most once per frame, however many messages arrive. */
  tell(activity: Activity, socket: RagkitSocket): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      say(this.button, `ragkit: ${this.describe(activity, socket.state)}`);
    });
  }

  private describe(activity: Activity, state: ConnectionState): string {
    if (state.status !== 'open') {
      return statusText(state, this.words);
    }
    const running = [...activity.live.values()];
    if (running.length === 0) {
      return this.words.__('nothing runs');
    }
    const share = running.length === 1 ? doneShare(running[0]) : null;
    const tasks = this.words._n('%1 task', '%1 tasks', running.length);
    return share === null ? tasks : `${tasks}, ${Math.floor(100 * share)} %`;
  }
}
