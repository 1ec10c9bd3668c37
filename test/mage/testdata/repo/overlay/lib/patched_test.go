package lib

import "testing"

func TestGreeting(t *testing.T) {
	if Greeting() != "patched" {
		t.Fatal(Greeting())
	}
}
