//! Tables and figures from artifacts: Markdown, CSV, JSON and LaTeX
