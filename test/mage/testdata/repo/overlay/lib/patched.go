package lib

func patched() string { return "patched" }
