"""The commands, by what they are about. Each module has `install(app)`, and imports what a command needs when that
runs."""
