package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mount"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// called are what this program is under other names, in the image of a release: what
// the kubelet calls to mount volumes, where no system provides it (mount(8), umount(8)).
var called = map[string]func(args []string) error{"mount": mountCommand, "umount": umountCommand}

// runAs does what the program's name stands for, if it is not its own.
func runAs(name string, args []string) {
	command := called[filepath.Base(name)]
	if command == nil {
		return
	}
	if err := command(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(name), err)
		os.Exit(32) // "mount failure"
	}
	os.Exit(0)
}

func mountCommand(args []string) error {
	flags := pflag.NewFlagSet("mount", pflag.ContinueOnError)
	kind := flags.StringP("types", "t", "", "the type of the filesystem")
	options := flags.StringP("options", "o", "", "a list with commas")
	// The kubelet says so of a subPath, which it has resolved (pkg/volume/util/subpath).
	flags.BoolP("no-canonicalize", "c", false, "take the paths as they are, which is done anyway")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errors.New("usage: mount [-t TYPE] [-o OPTIONS] SOURCE TARGET")
	}
	return mount.Mount(flags.Arg(0), flags.Arg(1), *kind, *options)
}

func umountCommand(args []string) error {
	flags := pflag.NewFlagSet("umount", pflag.ContinueOnError)
	force := flags.BoolP("force", "f", false, "of a server that does not answer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: umount [-f] TARGET")
	}
	how := 0
	if *force {
		how = unix.MNT_FORCE
	}
	err := unix.Unmount(flags.Arg(0), how)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s: not mounted", flags.Arg(0)) // the kubelet looks for these words
	}
	if err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}
	return nil
}
