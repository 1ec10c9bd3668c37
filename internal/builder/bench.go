package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/tools/benchmark/parse"

	"k3s9p/internal/hint"
	"k3s9p/internal/patch"
)

// measurement is a figure with its limit.
type measurement struct {
	name  string
	value float64
	unit  string // "×" for ratios
	limit float64
	least bool   // the limit is the least that is wanted, not the most
	parts string // what the ratio is of
}

func (m measurement) missed() bool {
	if m.least {
		return m.value < m.limit
	}
	return m.value > m.limit
}

func (m measurement) String() string {
	limit, verdict := "limit", "ok"
	if m.least {
		limit = "at least"
	}
	switch {
	case m.missed() && m.least:
		verdict = "BELOW THE LIMIT"
	case m.missed():
		verdict = "OVER THE LIMIT"
	}
	return fmt.Sprintf("%-58s %8.2f %-4s (%s %.2f) %s  %s", m.name, m.value, m.unit, limit, m.limit, verdict, m.parts)
}

// What Bench can be told to measure only.
const (
	BuildOnly   = "build"
	ClusterOnly = "cluster"
)

// BenchOptions say what is measured, and how long.
type BenchOptions struct {
	Only string // BuildOnly, ClusterOnly or everything
	Cold bool   // also a first build, which takes twice as long as one
	// Of the cluster: in which gVisor (today, YYYYMM, or all if empty), and how many
	// times in each.
	GVisor string
	Times  int
}

// Bench measures the build against plain go build, the patched code against the
// stock code, and the cluster in each gVisor against the same natively, each pair in
// one run. Figures that miss their limit are an error.
func (b *Builder) Bench(ctx context.Context, distro string, o BenchOptions) (err error) {
	defer func() { err = b.noSpace(err) }()
	type part func(context.Context, Selection) ([]measurement, error)
	build := []part{b.benchFilesystems, b.benchBuild}
	if o.Cold {
		build = append(build, b.benchCold)
	}
	cluster := []part{func(ctx context.Context, _ Selection) ([]measurement, error) {
		return b.benchCluster(ctx, o.GVisor, o.Times)
	}}
	parts := map[string][]part{"": append(cluster, build...), BuildOnly: build, ClusterOnly: cluster}[o.Only]
	if parts == nil {
		return hint.Add(fmt.Errorf("there is no benchmark %q", o.Only), "-only=%s or -only=%s", BuildOnly, ClusterOnly)
	}
	if o.Times < 1 {
		return hint.Add(fmt.Errorf("-times=%d measures nothing", o.Times), "go tool mage bench -times=3")
	}
	selection, err := b.selection(distro)
	if err != nil {
		return err
	}
	var all []measurement
	for _, bench := range parts {
		figures, err := bench(ctx, selection)
		if err != nil {
			return err
		}
		all = append(all, figures...)
	}
	missed := 0
	for _, m := range all {
		fmt.Println(m)
		if m.missed() {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d figures miss their limit", missed, len(all))
	}
	return nil
}

// setWith returns the set that patches a module.
func (s Selection) setWith(module string) (*Set, error) {
	for _, set := range s.Sets {
		if slices.Contains(set.Config.Patched, module) {
			return set, nil
		}
	}
	return nil, hint.Add(fmt.Errorf("no set of distribution %s patches %s", s.Distribution, module), "DISTRO=kubernetes has one")
}

const cadvisor = "github.com/google/cadvisor"

// rounds is how often each side of a comparison is measured, in turn.
const rounds = 6

// benchFilesystems compares one sample of all filesystems, stock and patched.
func (b *Builder) benchFilesystems(ctx context.Context, selection Selection) ([]measurement, error) {
	if os.Geteuid() != 0 {
		return nil, hint.Add(errors.New("the benchmark of filesystems mounts some, which needs root"), "sudo go tool mage bench")
	}
	set, err := selection.setWith(cadvisor)
	if err != nil {
		return nil, err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	programs, err := b.benchPrograms(ctx, set)
	if err != nil {
		return nil, err
	}
	step := b.UI.Step("GetGlobalFsInfo, stock against patched")
	results := make(map[string]parse.Set)
	for round := range rounds {
		for _, side := range []string{"stock", "patched"} {
			step.Note("round %d of %d, %s", round+1, rounds, side)
			out, err := b.run(ctx, command{
				dir:     b.work("tmp"),
				env:     append(os.Environ(), "K3S9P_BENCH_NAMESPACE=1"),
				args:    []string{programs[side], "-test.run=^$", "-test.bench=GetGlobalFsInfo", "-test.benchtime=0.5s"},
				unshare: syscall.CLONE_NEWNS,
			})
			if err != nil {
				step.Fail()
				return nil, fmt.Errorf("%w\n%s", err, out)
			}
			parsed, err := parse.ParseSet(bytes.NewReader(out))
			if err != nil {
				step.Fail()
				return nil, err
			}
			if results[side] == nil {
				results[side] = make(parse.Set)
			}
			for name, benchmarks := range parsed {
				results[side][name] = append(results[side][name], benchmarks...)
			}
		}
	}
	step.Done("")
	return compareBenchmarks(results["stock"], results["patched"])
}

// benchPrograms compiles the benchmark with the stock and with the patched module.
func (b *Builder) benchPrograms(ctx context.Context, set *Set) (map[string]string, error) {
	trees, err := b.sources(ctx, set)
	if err != nil {
		return nil, err
	}
	stockTrees, err := b.stockTrees(ctx, set)
	if err != nil {
		return nil, err
	}
	dir, err := b.temporary("bench")
	if err != nil {
		return nil, err
	}
	programs := make(map[string]string)
	for side, of := range map[string]map[string]string{"stock": stockTrees, "patched": trees} {
		modfile, err := b.modfileFor(set, set.Name+"-bench-"+side, of)
		if err != nil {
			return nil, err
		}
		programs[side] = filepath.Join(dir, side+".test")
		_, err = b.run(ctx, command{dir: set.Dir, env: b.offline(set), args: []string{
			"go", "test", "-c", "-trimpath", "-vet=off", "-mod=readonly", "-modfile=" + modfile, "-o", programs[side], "./upstream"}})
		if err != nil {
			return nil, err
		}
	}
	return programs, nil
}

func compareBenchmarks(stock, patched parse.Set) ([]measurement, error) {
	var figures []measurement
	for name := range stock {
		if len(patched[name]) == 0 {
			return nil, fmt.Errorf("benchmark %s ran with the stock code only", name)
		}
		for _, value := range []struct {
			what, unit string
			of         func(*parse.Benchmark) float64
		}{
			{"time", "ns", func(m *parse.Benchmark) float64 { return m.NsPerOp }},
			{"allocations", "", func(m *parse.Benchmark) float64 { return float64(m.AllocsPerOp) }},
		} {
			before, after := medianOf(stock[name], value.of), medianOf(patched[name], value.of)
			figures = append(figures, measurement{
				name:  strings.TrimPrefix(name, "Benchmark") + " " + value.what,
				value: after / before, unit: "×", limit: 1.00,
				parts: fmt.Sprintf("patched %.0f %s, stock %.0f %s", after, value.unit, before, value.unit),
			})
		}
	}
	if len(figures) == 0 {
		return nil, errors.New("the benchmark printed no figures")
	}
	slices.SortFunc(figures, func(a, b measurement) int { return strings.Compare(a.name, b.name) })
	return figures, nil
}

func medianOf(benchmarks []*parse.Benchmark, of func(*parse.Benchmark) float64) float64 {
	var values []float64
	for _, m := range benchmarks {
		values = append(values, of(m))
	}
	return median(values)
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// benchBuild measures, in a copy of the repository, a build with nothing to do,
// and one after a line of a cAdvisor patch has changed against go build of the
// same tree after such a change.
func (b *Builder) benchBuild(ctx context.Context, selection Selection) ([]measurement, error) {
	twin, remove, err := b.twin("k3s9p-bench-")
	if err != nil {
		return nil, err
	}
	defer remove()
	if err := twin.Build(ctx, selection.Distribution); err != nil {
		return nil, err
	}
	step := b.UI.Step("mage build with nothing to do, and after one patch")
	var idle, mage, plain []float64
	for round := range rounds / 2 {
		step.Note("round %d", round+1)
		for _, side := range []struct {
			times *[]float64
			run   func() (time.Duration, error)
		}{
			{&idle, func() (time.Duration, error) { return twin.timeMage(ctx, selection.Distribution) }},
			{&mage, func() (time.Duration, error) {
				if err := twin.changePatch(); err != nil {
					return 0, err
				}
				return twin.timeMage(ctx, selection.Distribution)
			}},
			{&plain, func() (time.Duration, error) {
				if err := twin.changePatch(); err != nil {
					return 0, err
				}
				return twin.timePlain(ctx, selection.Distribution)
			}},
			// The build that go build has just compiled for, so that the next round
			// starts as this one did.
			{new([]float64), func() (time.Duration, error) { return twin.timeMage(ctx, selection.Distribution) }},
		} {
			took, err := side.run()
			if err != nil {
				step.Fail()
				return nil, err
			}
			*side.times = append(*side.times, took.Seconds())
		}
	}
	step.Done("")
	return []measurement{
		{name: "mage build with nothing to do", value: median(idle), unit: "s", limit: 2},
		{name: "mage build after one cAdvisor patch, against go build", value: median(mage) / median(plain), unit: "×", limit: 1.15,
			parts: fmt.Sprintf("mage build %.1f s, go build %.1f s", median(mage), median(plain))},
	}, nil
}

// changePatch edits a cAdvisor patch as a developer would: a line of code more in
// package fs.
func (b *Builder) changePatch() error {
	files, err := filepath.Glob(filepath.Join(b.Root, "patches", cadvisor, "*", "*.patch"))
	if err != nil {
		return err
	}
	for _, file := range slices.Backward(files) { // the last one: the next ones would have to move
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		edited, ok, err := patch.Lengthen(data, "fs/fs.go", fmt.Sprintf("\t\t_ = %d\n", time.Now().UnixNano()))
		if err != nil {
			return err
		}
		if ok {
			return os.WriteFile(file, edited, 0o644)
		}
	}
	return errors.New("no cAdvisor patch adds a block to fs/fs.go")
}

// timeMage times go tool mage build, as a user types it.
func (b *Builder) timeMage(ctx context.Context, distro string) (time.Duration, error) {
	start := time.Now()
	_, err := b.run(ctx, command{dir: b.Root, env: append(os.Environ(), "DISTRO="+distro), args: []string{"go", "tool", "mage", "build"}})
	return time.Since(start), err
}

// timePlain times go build of the programs that the patch is in. The patched tree
// is made before.
func (b *Builder) timePlain(ctx context.Context, distro string) (time.Duration, error) {
	selection, err := b.selection(distro)
	if err != nil {
		return 0, err
	}
	set, err := selection.setWith(cadvisor)
	if err != nil {
		return 0, err
	}
	return b.timeGoBuild(ctx, set)
}

func (b *Builder) timeGoBuild(ctx context.Context, set *Set) (time.Duration, error) {
	quiet := &Builder{Root: b.Root, UI: UI{Printer: discard}, env: b.env}
	trees, err := quiet.sources(ctx, set)
	if err != nil {
		return 0, err
	}
	modfile, err := b.modfileFor(set, set.Name+"-plain", trees)
	if err != nil {
		return 0, err
	}
	flags, err := set.flags()
	if err != nil {
		return 0, err
	}
	dir, err := b.temporary("plain")
	if err != nil {
		return 0, err
	}
	args := append([]string{"go", "build", "-modfile=" + modfile}, flags...)
	args = append(args, "-o", dir+"/")
	for _, program := range set.Config.Programs {
		args = append(args, program.Package)
	}
	env := slices.DeleteFunc(b.goEnv(set.Config.CGO), func(entry string) bool { return slices.Contains(tunedGC(), entry) })
	start := time.Now()
	_, err = b.run(ctx, command{dir: set.Dir, env: append(env, "GOPROXY=off"), args: args})
	return time.Since(start), err
}

// benchCold compares a first build with go build of the same sets, both with an
// empty build cache and with all modules fetched.
func (b *Builder) benchCold(ctx context.Context, selection Selection) ([]measurement, error) {
	var took [2]time.Duration
	for i, name := range []string{"plain", "mage"} {
		twin, remove, err := b.twin("k3s9p-cold-" + name + "-")
		if err != nil {
			return nil, err
		}
		defer remove()
		twin.env = []string{"GOCACHE=" + filepath.Join(filepath.Dir(twin.Root), "cache")}
		step := b.UI.Step("cold: %s", name)
		if name == "mage" {
			start := time.Now()
			err = (&Builder{Root: twin.Root, UI: UI{Printer: discard}, env: twin.env}).Build(ctx, selection.Distribution)
			took[i] = time.Since(start)
		} else {
			for _, set := range selection.Sets {
				var one time.Duration
				// The set of the twin: its folders are elsewhere.
				moved := *set
				moved.Dir = filepath.Join(twin.Root, "build", set.Name)
				if one, err = twin.timeGoBuild(ctx, &moved); err != nil {
					break
				}
				took[i] += one
			}
		}
		if err != nil {
			step.Fail()
			return nil, err
		}
		step.Done("")
	}
	return []measurement{{
		name: "cold build, against go build", value: took[1].Seconds() / took[0].Seconds(), unit: "×", limit: 1.10,
		parts: fmt.Sprintf("mage build %.0f s, go build %.0f s", took[1].Seconds(), took[0].Seconds()),
	}}, nil
}
