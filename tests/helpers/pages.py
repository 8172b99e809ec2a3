"""The pages whose commands are run, in their order."""

# A page may use what the commands of those before it have made.
PAGES = (
    "README.md",
    "docs/data.md",
    "docs/runs.md",
    "docs/formats.md",
    "docs/generation.md",
    "docs/plan.md",
    "docs/scaling.md",
)
