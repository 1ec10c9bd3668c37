package bench

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

	"golang.org/x/tools/benchmark/parse"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/hint"
	"k3s9p/internal/pin"
)

const cadvisor = "github.com/google/cadvisor"

// rounds is how often each side of a comparison is measured, in turn.
const rounds = 6

// filesystems compares one sample of all filesystems, stock and patched.
func filesystems(ctx context.Context, b *builder.Builder, selection pin.Selection) ([]measurement, error) {
	if os.Geteuid() != 0 {
		return nil, hint.Add(errors.New("the benchmark of filesystems mounts some, which needs root"), "sudo go tool mage bench")
	}
	set, err := selection.SetWith(cadvisor)
	if err != nil {
		return nil, err
	}
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return nil, err
	}
	defer unlock()
	programs, err := benchmarks(ctx, b, set)
	if err != nil {
		return nil, err
	}
	step := b.UI.Step("GetGlobalFsInfo, stock against patched")
	results := make(map[string]parse.Set)
	for round := range rounds {
		for _, side := range []string{"stock", "patched"} {
			step.Note("round %d of %d, %s", round+1, rounds, side)
			out, err := b.Run(ctx, command.Command{
				Dir:     b.Work("tmp"),
				Env:     append(os.Environ(), "K3S9P_BENCH_NAMESPACE=1"),
				Args:    []string{programs[side], "-test.run=^$", "-test.bench=GetGlobalFsInfo", "-test.benchtime=0.5s"},
				Unshare: syscall.CLONE_NEWNS,
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

// benchmarks compiles the benchmark with the stock and with the patched module.
func benchmarks(ctx context.Context, b *builder.Builder, set *pin.Set) (map[string]string, error) {
	trees, err := b.Sources(ctx, set)
	if err != nil {
		return nil, err
	}
	stockTrees, err := b.StockSources(ctx, set)
	if err != nil {
		return nil, err
	}
	dir, err := b.Temporary("bench")
	if err != nil {
		return nil, err
	}
	programs := make(map[string]string)
	for side, of := range map[string]map[string]string{"stock": stockTrees, "patched": trees} {
		modfile, err := b.Modfile(set, set.Name+"-bench-"+side, of)
		if err != nil {
			return nil, err
		}
		programs[side] = filepath.Join(dir, side+".test")
		_, err = b.Run(ctx, command.Command{Dir: set.Dir, Env: b.Offline(set.Config.CGO), Args: []string{
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
