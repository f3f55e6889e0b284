"""How the model that reads while it speaks is trained; nothing outside this folder needs it."""
