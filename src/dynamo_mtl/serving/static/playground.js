"use strict";
// Everything that comes from a user or the model is put on the page as text, never as markup.

const element = (id) => document.getElementById(id);
let tasks = [];
let asked = null;

function made(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

async function request(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const began = performance.now();
  const response = await fetch(path, options);
  let content;
  try { content = await response.json(); } catch { content = { error: `the server answered ${response.status}` }; }
  if (!response.ok) throw new Error(content.error);
  return { content, milliseconds: performance.now() - began };
}

// How the task that answered shows its answers, as the server says.
function formOf(answer) {
  return tasks.find((task) => task.name === answer.task)?.answer ?? { key: null, form: "text" };
}

function said(answer) {
  const { key } = formOf(answer);
  return typeof answer[key] === "string" ? answer[key] : JSON.stringify(answer[key] ?? answer, null, 2);
}

function currentInput() {
  const context = element("context").value, instruction = element("instruction").value, hint = element("task").value;
  return {
    text: element("text").value,
    ...(context.trim() ? { context } : {}),
    ...(instruction.trim() ? { instruction } : {}),
    ...(hint ? { task_hint: hint } : {}),
  };
}

function drawBars(probabilities, chosen) {
  const list = element("bars");
  for (const [task, share] of Object.entries(probabilities)) {
    let row = [...list.children].find((node) => node.dataset.task === task);
    if (!row) {
      row = made("li");
      row.dataset.task = task;
      const track = made("div", "track");
      track.append(made("div", "bar"));
      row.append(made("span", "name", task), track, made("span", "share"));
      list.append(row);
    }
    row.classList.toggle("chosen", task === chosen);
    row.querySelector(".share").textContent = `${(100 * share).toFixed(1)} %`;
    const bar = row.querySelector(".bar");
    requestAnimationFrame(() => { bar.style.width = `${100 * share}%`; });
  }
}

function passage(answer, context) {
  const node = made("div", "passage");
  node.tabIndex = 0;
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "Context with the answer marked");
  // The server counts characters, and a string here counts some of them twice.
  const characters = [...context];
  node.append(
    characters.slice(0, answer.start).join(""),
    made("mark", "", characters.slice(answer.start, answer.end).join("")),
    characters.slice(answer.end).join(""),
  );
  return node;
}

function showAnswer(answer, input, milliseconds) {
  const place = element("answer");
  const { form } = formOf(answer);
  const text = made("p", form === "code" ? "said code" : "said", said(answer) || "(nothing)");
  text.tabIndex = 0;
  const parts = [text];
  if (form === "span" && input.context && answer.end > answer.start) parts.push(passage(answer, input.context));
  const score = typeof answer.score === "number" ? `, score ${answer.score.toFixed(3)}` : "";
  parts.push(made("p", "hint", `by ${answer.task}${score}, in ${milliseconds.toFixed(0)} ms`));
  place.replaceChildren(...parts);
  const routing = answer.routing;
  const doubt = routing.rejected ? " This is likely to be an input of none of these tasks, so the answer is a guess." : "";
  const forced = input.task_hint ? ` You asked ${input.task_hint} to answer.` : "";
  element("verdict").textContent = `The router is ${(100 * routing.confidence).toFixed(1)} % sure of `
    + `${routing.predicted_task}.${forced}${doubt}`;
  drawBars(routing.probabilities, answer.task);
  element("compare").hidden = tasks.length < 2;
  element("others").replaceChildren();
}

function showError(place, error) {
  const node = made("p", "error", error.message);
  node.setAttribute("role", "alert");
  place.replaceChildren(node);
}

async function busy(button, work, place) {
  button.disabled = true;
  try { await work(); } catch (error) { showError(place, error); } finally { button.disabled = false; }
}

async function answer() {
  const input = currentInput();
  if (!input.text.trim()) { element("text").focus(); return; }
  await busy(element("send"), async () => {
    const { content, milliseconds } = await request("v1/predict", { inputs: input });
    asked = { input, task: content.task };
    showAnswer(content, input, milliseconds);
  }, element("answer"));
}

async function compare() {
  const others = tasks.filter((task) => task.name !== asked.task && (!task.needs_context || asked.input.context));
  await busy(element("compare"), async () => {
    const inputs = others.map((task) => ({ ...asked.input, task_hint: task.name }));
    const { content } = await request("v1/predict", { inputs });
    const list = made("dl");
    others.forEach((task, place) => {
      list.append(made("dt", "", task.name), made("dd", "", content[place].error ?? said(content[place])));
    });
    element("others").replaceChildren(list);
  }, element("others"));
}

function fill(input) {
  element("text").value = input.text;
  element("context").value = input.context ?? "";
  element("instruction").value = input.instruction ?? "";
  element("task").value = "";
  element("more").open = Boolean(input.context || input.instruction);
  answer();
}

function offer(task, example) {
  const input = typeof example === "string" ? { text: example } : { ...example, text: example.text ?? example.question };
  const button = made("button", "", task.name);
  button.type = "button";
  button.title = input.text;
  button.addEventListener("click", () => fill(input));
  element("examples").append(button);
  element("examples").parentElement.hidden = false;
}

async function start() {
  element("ask").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  element("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); answer(); }
  });
  element("compare").addEventListener("click", compare);
  try {
    tasks = (await request("v1/tasks")).content;
    for (const task of tasks) {
      const option = made("option", "", task.name);
      option.value = task.name;
      option.title = task.description;
      element("task").append(option);
      for (const example of task.examples) offer(task, example);
    }
  } catch (error) { showError(element("answer"), error); }
}

start();
