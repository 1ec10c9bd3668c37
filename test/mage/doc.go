// Package mage tests the targets as a user runs them: the real binary that mage
// makes of magefiles/, in a small repository of the same layout, with a module
// proxy that serves small modules. Each script in testdata/script is a behaviour.
package mage
