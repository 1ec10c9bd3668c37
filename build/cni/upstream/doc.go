// Package upstream keeps in this module's go.mod what only the tests of the
// patched modules import.
package upstream
