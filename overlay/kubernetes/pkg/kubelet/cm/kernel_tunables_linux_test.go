//go:build linux

/*
Copyright 2026 The Kubernetes Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

package cm

import (
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"testing"

	inuserns "github.com/moby/sys/userns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
	sysctltest "k8s.io/component-helpers/node/util/sysctl/testing"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	kubefeatures "k8s.io/kubernetes/pkg/features"
)

// tunablesFake is a fake /proc/sys whose files can fail as real ones do.
type tunablesFake struct {
	*sysctltest.Fake
	getErr map[string]error
	setErr map[string]error
	set    map[string]int
}

func newTunablesFake(settings map[string]int) *tunablesFake {
	f := &tunablesFake{Fake: sysctltest.NewFake(), set: map[string]int{}}
	maps.Copy(f.Settings, settings)
	return f
}

func (f *tunablesFake) GetSysctl(flag string) (int, error) {
	if err := f.getErr[flag]; err != nil {
		return -1, err
	}
	if _, ok := f.Settings[flag]; !ok {
		return -1, tunableError("open", flag, unix.ENOENT)
	}
	return f.Fake.GetSysctl(flag)
}

func (f *tunablesFake) SetSysctl(flag string, value int) error {
	if err := f.setErr[flag]; err != nil {
		return err
	}
	f.set[flag] = value
	return f.Fake.SetSysctl(flag, value)
}

// tunableError is the error with which os.ReadFile and os.WriteFile report errno.
func tunableError(op, flag string, errno unix.Errno) error {
	return &fs.PathError{Op: op, Path: "/proc/sys/" + flag, Err: errno}
}

// expectedTunables is what the kubelet wants.
var expectedTunables = map[string]int{
	utilsysctl.VMOvercommitMemory: 1,
	utilsysctl.VMPanicOnOOM:       0,
	utilsysctl.KernelPanic:        10,
	utilsysctl.KernelPanicOnOops:  1,
	utilsysctl.RootMaxKeys:        1000000,
	utilsysctl.RootMaxBytes:       25000000,
}

// with returns expectedTunables with the given changes.
func with(changes map[string]int) map[string]int {
	settings := maps.Clone(expectedTunables)
	maps.Copy(settings, changes)
	return settings
}

// without returns expectedTunables without the given flags.
func without(flags ...string) map[string]int {
	settings := maps.Clone(expectedTunables)
	for _, flag := range flags {
		delete(settings, flag)
	}
	return settings
}

// gVisorTunables is what gVisor 160fafc42237 has of expectedTunables. A write to it ends with EIO.
var gVisorTunables = map[string]int{utilsysctl.VMOvercommitMemory: 0}

// loggedFlags returns the flag of each log line that is visible by default.
func loggedFlags(logger klog.Logger) []string {
	var flags []string
	for _, entry := range logger.GetSink().(ktesting.Underlier).GetBuffer().Data() {
		i := slices.Index(entry.ParameterKVList, any("flag"))
		flags = append(flags, entry.ParameterKVList[i+1].(string))
	}
	return flags
}

func TestSetupKernelTunables(t *testing.T) {
	_, notANumber := strconv.Atoi("off")

	for name, tc := range map[string]struct {
		option   KernelTunableBehavior
		settings map[string]int
		getErr   map[string]error
		setErr   map[string]error
		// notInUserNS is for cases which rules for user namespaces override.
		notInUserNS bool
		wantSet     map[string]int
		// wantSkipped are the flags of which the log must have one line each.
		wantSkipped []string
		wantErrs    []string
	}{
		"modify: nothing to do": {
			option:   KernelTunableModify,
			settings: expectedTunables,
		},
		"modify: wrong values are set": {
			option:   KernelTunableModify,
			settings: with(map[string]int{utilsysctl.VMOvercommitMemory: 0, utilsysctl.KernelPanic: 0}),
			wantSet:  map[string]int{utilsysctl.VMOvercommitMemory: 1, utilsysctl.KernelPanic: 10},
		},
		"modify: unparsable value": {
			option:   KernelTunableModify,
			settings: with(map[string]int{utilsysctl.KernelPanic: 0}),
			getErr:   map[string]error{utilsysctl.VMPanicOnOOM: notANumber},
			wantSet:  map[string]int{utilsysctl.KernelPanic: 10},
			wantErrs: []string{`parsing "off"`},
		},
		"modify: absent": {
			option:      KernelTunableModify,
			settings:    without(utilsysctl.VMPanicOnOOM, utilsysctl.RootMaxKeys),
			wantSkipped: []string{utilsysctl.VMPanicOnOOM, utilsysctl.RootMaxKeys},
		},
		"modify: absent does not hide wrong values": {
			option:      KernelTunableModify,
			settings:    map[string]int{utilsysctl.KernelPanic: 0},
			wantSet:     map[string]int{utilsysctl.KernelPanic: 10},
			wantSkipped: []string{utilsysctl.VMOvercommitMemory, utilsysctl.VMPanicOnOOM, utilsysctl.KernelPanicOnOops, utilsysctl.RootMaxKeys, utilsysctl.RootMaxBytes},
		},
		"modify: absent does not hide unparsable value": {
			option:      KernelTunableModify,
			settings:    without(utilsysctl.VMPanicOnOOM),
			getErr:      map[string]error{utilsysctl.KernelPanic: notANumber},
			wantSkipped: []string{utilsysctl.VMPanicOnOOM},
			wantErrs:    []string{`parsing "off"`},
		},
		"modify: unreadable": {
			option:      KernelTunableModify,
			settings:    expectedTunables,
			getErr:      map[string]error{utilsysctl.KernelPanic: tunableError("open", utilsysctl.KernelPanic, unix.EACCES)},
			wantSkipped: []string{utilsysctl.KernelPanic},
		},
		"modify: no file descriptor to read with": {
			option:   KernelTunableModify,
			settings: expectedTunables,
			getErr:   map[string]error{utilsysctl.KernelPanic: tunableError("open", utilsysctl.KernelPanic, unix.EMFILE)},
			wantErrs: []string{"kernel/panic: too many open files"},
		},
		"modify: refused": {
			option: KernelTunableModify,
			settings: map[string]int{
				utilsysctl.VMOvercommitMemory: 0,
				utilsysctl.VMPanicOnOOM:       1,
				utilsysctl.KernelPanic:        0,
				utilsysctl.KernelPanicOnOops:  0,
				utilsysctl.RootMaxKeys:        200,
				utilsysctl.RootMaxBytes:       20000,
			},
			setErr: map[string]error{
				utilsysctl.VMOvercommitMemory: tunableError("write", utilsysctl.VMOvercommitMemory, unix.EIO),
				utilsysctl.VMPanicOnOOM:       tunableError("open", utilsysctl.VMPanicOnOOM, unix.EROFS),
				utilsysctl.KernelPanic:        tunableError("open", utilsysctl.KernelPanic, unix.EACCES),
				utilsysctl.KernelPanicOnOops:  tunableError("write", utilsysctl.KernelPanicOnOops, unix.EPERM),
				utilsysctl.RootMaxKeys:        tunableError("write", utilsysctl.RootMaxKeys, unix.EINVAL),
			},
			notInUserNS: true,
			wantSet:     map[string]int{utilsysctl.RootMaxBytes: 25000000},
			wantSkipped: []string{utilsysctl.VMOvercommitMemory, utilsysctl.VMPanicOnOOM, utilsysctl.KernelPanic, utilsysctl.KernelPanicOnOops, utilsysctl.RootMaxKeys},
		},
		"modify: gone between read and write": {
			option:      KernelTunableModify,
			settings:    with(map[string]int{utilsysctl.KernelPanic: 0}),
			setErr:      map[string]error{utilsysctl.KernelPanic: tunableError("open", utilsysctl.KernelPanic, unix.ENOENT)},
			notInUserNS: true,
			wantSkipped: []string{utilsysctl.KernelPanic},
		},
		"modify: no memory to write with": {
			option:      KernelTunableModify,
			settings:    with(map[string]int{utilsysctl.KernelPanic: 0}),
			setErr:      map[string]error{utilsysctl.KernelPanic: tunableError("write", utilsysctl.KernelPanic, unix.ENOMEM)},
			notInUserNS: true,
			wantErrs:    []string{"kernel/panic: cannot allocate memory"},
		},
		"modify: gVisor": {
			option:      KernelTunableModify,
			settings:    gVisorTunables,
			setErr:      map[string]error{utilsysctl.VMOvercommitMemory: tunableError("write", utilsysctl.VMOvercommitMemory, unix.EIO)},
			notInUserNS: true,
			wantSkipped: slices.Collect(maps.Keys(expectedTunables)),
		},
		"error: gVisor": {
			option:   KernelTunableError,
			settings: gVisorTunables,
			wantErrs: []string{
				"invalid kernel flag: vm/overcommit_memory, expected value: 1, actual value: 0",
				"vm/panic_on_oom: no such file or directory",
				"kernel/panic: no such file or directory",
				"kernel/panic_on_oops: no such file or directory",
				"kernel/keys/root_maxkeys: no such file or directory",
				"kernel/keys/root_maxbytes: no such file or directory",
			},
		},
		"warn: gVisor": {
			option:      KernelTunableWarn,
			settings:    gVisorTunables,
			wantSkipped: slices.Collect(maps.Keys(without(utilsysctl.VMOvercommitMemory))),
		},
		"error: nothing to do": {
			option:   KernelTunableError,
			settings: expectedTunables,
		},
		"error: wrong values are reported and kept": {
			option:   KernelTunableError,
			settings: with(map[string]int{utilsysctl.VMOvercommitMemory: 0, utilsysctl.KernelPanic: 60}),
			wantErrs: []string{
				"invalid kernel flag: vm/overcommit_memory, expected value: 1, actual value: 0",
				"invalid kernel flag: kernel/panic, expected value: 10, actual value: 60",
			},
		},
		"error: absent": {
			option:   KernelTunableError,
			settings: without(utilsysctl.VMPanicOnOOM),
			wantErrs: []string{"vm/panic_on_oom: no such file or directory"},
		},
		"error: unreadable": {
			option:   KernelTunableError,
			settings: expectedTunables,
			getErr:   map[string]error{utilsysctl.KernelPanic: tunableError("open", utilsysctl.KernelPanic, unix.EACCES)},
			wantErrs: []string{"kernel/panic: permission denied"},
		},
		"error: unparsable value": {
			option:   KernelTunableError,
			settings: expectedTunables,
			getErr:   map[string]error{utilsysctl.VMPanicOnOOM: notANumber},
			wantErrs: []string{`parsing "off"`},
		},
		"warn: wrong value is kept": {
			option:   KernelTunableWarn,
			settings: with(map[string]int{utilsysctl.KernelPanic: 60}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.notInUserNS && inuserns.RunningInUserNS() {
				t.Skip("running in a user namespace")
			}
			logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(0), ktesting.BufferLogs(true)))
			sysctl := newTunablesFake(tc.settings)
			sysctl.getErr, sysctl.setErr = tc.getErr, tc.setErr

			err := setupKernelTunables(logger, sysctl, tc.option)

			var errs []error
			if aggregate, ok := err.(utilerrors.Aggregate); ok {
				errs = aggregate.Errors()
			}
			require.Len(t, errs, len(tc.wantErrs))
			for _, want := range tc.wantErrs {
				assert.ErrorContains(t, err, want)
			}
			assert.ElementsMatch(t, tc.wantSkipped, loggedFlags(logger))
			if tc.wantSet == nil {
				tc.wantSet = map[string]int{}
			}
			assert.Equal(t, tc.wantSet, sysctl.set)
		})
	}
}

// TestSetupKernelTunablesInUserNS has to be run by "unshare -Ur go test".
func TestSetupKernelTunablesInUserNS(t *testing.T) {
	if !inuserns.RunningInUserNS() {
		t.Skip("not running in a user namespace")
	}
	for name, tc := range map[string]struct {
		gate    bool
		wantErr bool
	}{
		"a failed write is ignored with KubeletInUserNamespace":     {gate: true},
		"a failed write is an error without KubeletInUserNamespace": {wantErr: true},
	} {
		t.Run(name, func(t *testing.T) {
			featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, kubefeatures.KubeletInUserNamespace, tc.gate)
			logger, _ := ktesting.NewTestContext(t)
			sysctl := newTunablesFake(map[string]int{utilsysctl.KernelPanic: 0, utilsysctl.VMOvercommitMemory: 0})
			sysctl.setErr = map[string]error{utilsysctl.KernelPanic: tunableError("open", utilsysctl.KernelPanic, unix.EACCES)}

			err := setupKernelTunables(logger, sysctl, KernelTunableModify)

			if tc.wantErr {
				require.ErrorContains(t, err, "kernel/panic: permission denied")
			} else {
				require.NoError(t, err)
			}
			assert.Equal(t, map[string]int{utilsysctl.VMOvercommitMemory: 1}, sysctl.set)
		})
	}
}
