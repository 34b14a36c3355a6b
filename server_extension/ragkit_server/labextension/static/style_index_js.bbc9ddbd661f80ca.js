"use strict";(self.rspackChunkragkit_lab=self.rspackChunkragkit_lab||[]).push([["style_index_js"],{"./node_modules/css-loader/dist/cjs.js!./style/live.css"(e,r,t){var o=t("./node_modules/css-loader/dist/runtime/noSourceMaps.js"),a=t.n(o),i=t("./node_modules/css-loader/dist/runtime/api.js"),n=(t.n(i))()(a());n.push([e.id,`/* Colours and sizes come from JupyterLab's theme where there is one. Elsewhere light-dark() follows the page. */

.rk-live {
  --rk-text: var(--jp-ui-font-color1, light-dark(#1f1f1f, #e6e6e6));
  --rk-quiet: var(--jp-ui-font-color1, light-dark(#4d4d4d, #c4c4c4));
  --rk-back: var(--jp-layout-color1, light-dark(#fff, #161616));
  --rk-raised: var(--jp-layout-color2, light-dark(#eee, #2b2b2b));
  --rk-line: var(--jp-border-color1, light-dark(#bdbdbd, #616161));
  --rk-brand: var(--jp-brand-color1, light-dark(#1565c0, #64b5f6));
  --rk-link: var(--jp-content-link-color, light-dark(#1557a8, #82b8f0));
  --rk-bad: light-dark(#b3261e, #ff8a80);
  --rk-good: light-dark(#1b6e2e, #81c784);

  box-sizing: border-box;
  display: flex;
  flex-direction: column;
  min-height: 0;
  color: var(--rk-text);
  background: var(--rk-back);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif);
  font-size: var(--jp-ui-font-size1, 13px);
  line-height: 1.45;
}

/* light-dark() asks color-scheme, and JupyterLab says its theme in an attribute. */
[data-jp-theme-light='false'] .rk-live {
  color-scheme: dark;
}

[data-jp-theme-light='true'] .rk-live {
  color-scheme: light;
}

.rk-live *,
.rk-live *::before {
  box-sizing: border-box;
}

.rk-live [hidden] {
  display: none !important;
}

:where(.rk-live) :is(p, ul, h3, blockquote) {
  margin: 0;
  padding: 0;
}

:where(.rk-live) ul {
  list-style: none;
}

.rk-unseen {
  position: absolute;
  width: 1px;
  height: 1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

.rk-quiet {
  color: var(--rk-quiet);
  font-size: 0.92em;
}

.rk-empty {
  padding: 16px 12px;
  color: var(--rk-quiet);
}

.rk-line {
  display: flex;
  align-items: center;
  gap: 6px;
}

.rk-live button,
.rk-live select,
.rk-live textarea {
  font: inherit;
  color: inherit;
}

.rk-live :is(button, select, textarea, summary, [tabindex]):focus-visible {
  outline: 2px solid var(--rk-brand);
  outline-offset: 1px;
}

.rk-button {
  padding: 3px 10px;
  border: 1px solid var(--rk-line);
  border-radius: 3px;
  background: var(--rk-raised);
  cursor: pointer;
}

.rk-primary {
  font-weight: 600;
}

.rk-link {
  padding: 0;
  border: 0;
  background: none;
  color: var(--rk-link) !important;
  text-align: start;
  text-decoration: underline;
  cursor: pointer;
  overflow-wrap: anywhere;
}

/* ------------------------------------------------------------------------------- connection */

.rk-connection {
  padding: 6px 12px;
  border-bottom: 1px solid var(--rk-line);
}

.rk-connection .rk-line {
  min-height: 26px;
}

.rk-connection .rk-button {
  margin-inline-start: auto;
}

.rk-connection p {
  padding-bottom: 4px;
}

.rk-dot {
  flex: none;
  width: 9px;
  height: 9px;
  border-radius: 50%;
  border: 2px solid var(--rk-quiet);
}

[data-status='open'] .rk-dot {
  border-color: var(--rk-good);
  background: var(--rk-good);
}

[data-status='waiting'] .rk-dot {
  border-color: var(--rk-bad);
}

/* ------------------------------------------------------------------------------------- tabs */

.rk-tabs {
  display: flex;
  flex: none;
  border-bottom: 1px solid var(--rk-line);
}

.rk-tab {
  flex: 1;
  padding: 6px 4px;
  border: 0;
  border-bottom: 3px solid transparent;
  background: none;
  cursor: pointer;
}

.rk-tab[aria-selected='true'] {
  border-bottom-color: var(--rk-brand);
  font-weight: 600;
}

.rk-view {
  flex: 1;
  min-height: 0;
  overflow: auto;
}

/* --------------------------------------------------------------------------------- activity */

.rk-task {
  padding: 8px 12px;
  border-bottom: 1px solid var(--rk-line);
  overflow-wrap: anywhere;
  /* A thousand tasks: the ones out of sight are not laid out. */
  content-visibility: auto;
  contain-intrinsic-size: auto 76px;
}

.rk-compact {
  contain-intrinsic-size: auto 54px;
}

.rk-head {
  display: flex;
  justify-content: space-between;
  gap: 8px;
}

.rk-title {
  font-weight: 600;
}

.rk-state {
  flex: none;
  font-variant-numeric: tabular-nums;
}

[data-state='failed'] > .rk-head > .rk-state,
.rk-message,
.rk-error {
  color: var(--rk-bad);
}

[data-state='done'] > .rk-head > .rk-state {
  color: var(--rk-good);
}

[data-state='cancelled'] > .rk-message {
  color: inherit;
}

.rk-bar {
  position: relative;
  height: 6px;
  margin: 4px 0;
  border-radius: 3px;
  background: var(--rk-raised);
  box-shadow: inset 0 0 0 1px var(--rk-line);
  overflow: hidden;
}

.rk-fill {
  height: 100%;
  background: var(--rk-brand);
  transition: width 0.2s linear;
}

.rk-bar:not([aria-valuenow]) .rk-fill {
  width: 30%;
  animation: rk-slide 1.6s ease-in-out infinite alternate;
}

@keyframes rk-slide {
  to {
    margin-left: 70%;
  }
}

@media (prefers-reduced-motion: reduce) {
  .rk-fill {
    transition: none;
    animation: none !important;
  }
}

.rk-numbers,
.rk-current,
.rk-foot {
  font-size: 0.92em;
  font-variant-numeric: tabular-nums;
}

.rk-current {
  white-space: nowrap;
  overflow: hidden;
  text-overflow: ellipsis;
}

.rk-foot {
  display: flex;
  flex-wrap: wrap;
  gap: 0 6px;
}

.rk-live summary {
  cursor: pointer;
}

.rk-failures ul {
  max-height: 12em;
  overflow: auto;
  padding-inline-start: 14px;
}

.rk-fold > summary {
  padding: 8px 12px;
  background: var(--rk-raised);
}

.rk-activity > .rk-quiet {
  padding: 8px 12px;
}

/* -------------------------------------------------------------------------------------- ask */

.rk-ask {
  display: flex;
  flex-direction: column;
}

.rk-log {
  position: relative;
  flex: 1;
  min-height: 0;
  overflow: auto;
}

.rk-exchange {
  padding: 8px 12px;
  border-bottom: 1px solid var(--rk-line);
}

.rk-asked {
  font-weight: 600;
  white-space: pre-wrap;
  overflow-wrap: anywhere;
}

.rk-text {
  margin: 4px 0;
  white-space: pre-wrap;
  overflow-wrap: anywhere;
  user-select: text;
}

.rk-text code,
.rk-text pre {
  font-family: var(--jp-code-font-family, monospace);
  font-size: 0.92em;
  white-space: pre-wrap;
}

.rk-text pre {
  margin: 4px 0;
  padding: 4px 8px;
  background: var(--rk-raised);
}

.rk-marker {
  margin: 0 1px;
  padding: 0 5px;
  border: 1px solid var(--rk-line);
  border-radius: 8px;
  background: var(--rk-raised);
  color: var(--rk-text);
  font-size: 0.85em !important;
  cursor: pointer;
}

.rk-passages {
  margin: 4px 0;
}

.rk-number-of {
  font-weight: 600;
}

.rk-passages blockquote {
  margin: 4px 0;
  padding: 2px 10px;
  border-inline-start: 3px solid var(--rk-line);
  white-space: pre-wrap;
  overflow-wrap: anywhere;
  user-select: text;
}

.rk-live mark {
  background: #ffe58f;
  color: #1a1a1a;
}

.rk-chips {
  display: flex;
  flex-wrap: wrap;
  gap: 5px;
  padding: 5px 0;
}

.rk-chip {
  padding: 3px 10px;
  border: 1px solid var(--rk-line);
  border-radius: 12px;
  background: var(--rk-raised);
  text-align: start;
  overflow-wrap: anywhere;
  cursor: pointer;
}

.rk-suggested,
.rk-form {
  flex: none;
  padding: 6px 12px;
  border-top: 1px solid var(--rk-line);
}

/* At the bottom, also before there is anything above it. */
.rk-form {
  margin-top: auto;
}

.rk-form .rk-line {
  flex-wrap: wrap;
}

.rk-chips-title {
  flex-basis: 100%;
}

.rk-suggested {
  max-height: 40%;
  overflow: auto;
}

.rk-question {
  width: 100%;
  padding: 5px 8px;
  border: 1px solid var(--rk-line);
  border-radius: 3px;
  background: var(--rk-back);
  resize: vertical;
}

.rk-question::placeholder {
  font-style: italic;
  color: var(--rk-quiet);
  opacity: 1;
}

.rk-select {
  flex: 1 1 9em;
  min-width: 0;
  padding: 3px 18px 3px 3px;
  text-overflow: ellipsis;
  border: 1px solid var(--rk-line);
  border-radius: 3px;
  background: var(--rk-raised);
}

/* ------------------------------------------------------------------------------ experiments */

.rk-board {
  padding: 8px 12px;
  border-bottom: 1px solid var(--rk-line);
}

.rk-scroll {
  overflow: auto;
}

.rk-board h3 {
  font-size: 1em;
  overflow-wrap: anywhere;
}

.rk-board table {
  border-collapse: collapse;
  font-variant-numeric: tabular-nums;
}

.rk-board :is(th, td) {
  padding: 2px 8px;
  border-bottom: 1px solid var(--rk-line);
  text-align: start;
}

.rk-board .rk-number {
  text-align: end;
}

.rk-new {
  background: var(--rk-raised);
  font-weight: 600;
}

/* ------------------------------------------------------------------------------- status bar */

.rk-status {
  height: 100%;
  padding: 0 6px;
  border: 0;
  background: none;
  color: var(--jp-ui-font-color1);
  font: inherit;
  cursor: pointer;
}

/* ---------------------------------------------------------- a panel's height, a widget's own */

.rk-panel,
.rk-panel > .rk-live {
  height: 100%;
}

.rk-widget .rk-live {
  border: 1px solid var(--rk-line);
  border-radius: 3px;
  max-height: 40em;
}

.rk-widget .rk-log {
  min-height: 18em;
}
`,""]),t.d(r,{},{A:n})},"./node_modules/css-loader/dist/runtime/api.js"(e){e.exports=function(e){var r=[];return r.toString=function(){return this.map(function(r){var t="",o=void 0!==r[5];return r[4]&&(t+="@supports (".concat(r[4],") {")),r[2]&&(t+="@media ".concat(r[2]," {")),o&&(t+="@layer".concat(r[5].length>0?" ".concat(r[5]):""," {")),t+=e(r),o&&(t+="}"),r[2]&&(t+="}"),r[4]&&(t+="}"),t}).join("")},r.i=function(e,t,o,a,i){"string"==typeof e&&(e=[[null,e,void 0]]);var n={};if(o)for(var s=0;s<this.length;s++){var l=this[s][0];null!=l&&(n[l]=!0)}for(var d=0;d<e.length;d++){var p=[].concat(e[d]);o&&n[p[0]]||(void 0!==i&&(void 0===p[5]||(p[1]="@layer".concat(p[5].length>0?" ".concat(p[5]):""," {").concat(p[1],"}")),p[5]=i),t&&(p[2]&&(p[1]="@media ".concat(p[2]," {").concat(p[1],"}")),p[2]=t),a&&(p[4]?(p[1]="@supports (".concat(p[4],") {").concat(p[1],"}"),p[4]=a):p[4]="".concat(a)),r.push(p))}},r}},"./node_modules/css-loader/dist/runtime/noSourceMaps.js"(e){e.exports=function(e){return e[1]}},"./node_modules/style-loader/dist/runtime/injectStylesIntoStyleTag.js"(e){var r=[];function t(e){for(var t=-1,o=0;o<r.length;o++)if(r[o].identifier===e){t=o;break}return t}function o(e,o){for(var a={},i=[],n=0;n<e.length;n++){var s=e[n],l=o.base?s[0]+o.base:s[0],d=a[l]||0,p="".concat(l," ").concat(d);a[l]=d+1;var c=t(p),u={css:s[1],media:s[2],sourceMap:s[3],supports:s[4],layer:s[5]};if(-1!==c)r[c].references++,r[c].updater(u);else{var k=function(e,r){var t=r.domAPI(r);return t.update(e),function(r){r?(r.css!==e.css||r.media!==e.media||r.sourceMap!==e.sourceMap||r.supports!==e.supports||r.layer!==e.layer)&&t.update(e=r):t.remove()}}(u,o);o.byIndex=n,r.splice(n,0,{identifier:p,updater:k,references:1})}i.push(p)}return i}e.exports=function(e,a){var i=o(e=e||[],a=a||{});return function(e){e=e||[];for(var n=0;n<i.length;n++){var s=t(i[n]);r[s].references--}for(var l=o(e,a),d=0;d<i.length;d++){var p=t(i[d]);0===r[p].references&&(r[p].updater(),r.splice(p,1))}i=l}}},"./node_modules/style-loader/dist/runtime/insertBySelector.js"(e){var r={};e.exports=function(e,t){var o=function(e){if(void 0===r[e]){var t=document.querySelector(e);if(window.HTMLIFrameElement&&t instanceof window.HTMLIFrameElement)try{t=t.contentDocument.head}catch(e){t=null}r[e]=t}return r[e]}(e);if(!o)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");o.appendChild(t)}},"./node_modules/style-loader/dist/runtime/insertStyleElement.js"(e){e.exports=function(e){var r=document.createElement("style");return e.setAttributes(r,e.attributes),e.insert(r,e.options),r}},"./node_modules/style-loader/dist/runtime/setAttributesWithoutAttributes.js"(e,r,t){e.exports=function(e){var r=t.nc;r&&e.setAttribute("nonce",r)}},"./node_modules/style-loader/dist/runtime/styleDomAPI.js"(e){e.exports=function(e){if("u"<typeof document)return{update:function(){},remove:function(){}};var r=e.insertStyleElement(e);return{update:function(t){var o,a,i;o="",t.supports&&(o+="@supports (".concat(t.supports,") {")),t.media&&(o+="@media ".concat(t.media," {")),(a=void 0!==t.layer)&&(o+="@layer".concat(t.layer.length>0?" ".concat(t.layer):""," {")),o+=t.css,a&&(o+="}"),t.media&&(o+="}"),t.supports&&(o+="}"),(i=t.sourceMap)&&"u">typeof btoa&&(o+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(i))))," */")),e.styleTagTransform(o,r,e.options)},remove:function(){var e;null===(e=r).parentNode||e.parentNode.removeChild(e)}}}},"./node_modules/style-loader/dist/runtime/styleTagTransform.js"(e){e.exports=function(e,r){if(r.styleSheet)r.styleSheet.cssText=e;else{for(;r.firstChild;)r.removeChild(r.firstChild);r.appendChild(document.createTextNode(e))}}},"./style/index.js"(e,r,t){var o=t("./node_modules/style-loader/dist/runtime/injectStylesIntoStyleTag.js"),a=t.n(o),i=t("./node_modules/style-loader/dist/runtime/styleDomAPI.js"),n=t.n(i),s=t("./node_modules/style-loader/dist/runtime/insertBySelector.js"),l=t.n(s),d=t("./node_modules/style-loader/dist/runtime/setAttributesWithoutAttributes.js"),p=t.n(d),c=t("./node_modules/style-loader/dist/runtime/insertStyleElement.js"),u=t.n(c),k=t("./node_modules/style-loader/dist/runtime/styleTagTransform.js"),f=t.n(k),m=t("./node_modules/css-loader/dist/cjs.js!./style/live.css"),h={};h.styleTagTransform=f(),h.setAttributes=p(),h.insert=l().bind(null,"head"),h.domAPI=n(),h.insertStyleElement=u(),a()(m.A,h),m.A&&m.A.locals&&m.A.locals}}]);