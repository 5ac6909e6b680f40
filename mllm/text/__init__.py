"""Between messages and ids: processor, templates, text ids."""
