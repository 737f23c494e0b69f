"""Files written whole or not at all, and the few formats that are read and written here."""
