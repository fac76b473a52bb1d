"""The layout that a codebase takes home: applied, checked, and said in other codebases' words."""
