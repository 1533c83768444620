import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./styles/tokens.css";
import "./styles/layout.css";
import "./styles/parts.css";
import "./styles/controls.css";
import { App } from "./app.tsx";
import { applyChosenTheme } from "./theme.ts";

applyChosenTheme();
const root = document.getElementById("page");
if (root !== null) render(<App />, root);
