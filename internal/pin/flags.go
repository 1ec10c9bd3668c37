package pin

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// date is the time that programs report as that of their build, in RFC 3339:
// SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)
// or the day on which the newest patch of the set was changed.
func (s *Set) date() (string, error) {
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", fmt.Errorf("SOURCE_DATE_EPOCH is %q, not a number of seconds", epoch)
		}
		return time.Unix(seconds, 0).UTC().Format(time.RFC3339), nil
	}
	newest := time.Unix(0, 0)
	for _, series := range s.Sources() {
		for _, p := range series.Patches {
			if p.Header.LastUpdate.After(newest) {
				newest = p.Header.LastUpdate
			}
		}
	}
	return newest.UTC().Format(time.RFC3339), nil
}

// Flags are the arguments of go build that the result depends on.
func (s *Set) Flags() ([]string, error) {
	date, err := s.date()
	if err != nil {
		return nil, err
	}
	variables, err := s.linkerVariables(date)
	if err != nil {
		return nil, err
	}
	linker := []string{"-s", "-w"}
	linker = append(append(linker, variables...), s.Config.Linker...)
	flags := []string{"-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=" + strings.Join(linker, " ")}
	if len(s.Config.Tags) > 0 {
		flags = append(flags, "-tags="+strings.Join(s.Config.Tags, ","))
	}
	return flags, nil
}

var minorVersion = regexp.MustCompile(`^v(\d+)\.(\d+)`)

// linkerVariables returns the linker's -X flags.
func (s *Set) linkerVariables(date string) ([]string, error) {
	var flags []string
	for _, variable := range s.Config.LinkerVariables {
		value, err := s.Expand(variable.Value, date)
		if err != nil {
			return nil, fmt.Errorf("%s: linkerVariables: %w", s.Name, err)
		}
		flags = append(flags, "-X", fmt.Sprintf("'%s=%s'", variable.Name, value))
	}
	return flags, nil
}

// Expand fills in a template of build.yaml.
func (s *Set) Expand(text, date string) (string, error) {
	pinOf := func(module string) (Pin, error) {
		pin, ok := s.Pins[module]
		if !ok {
			return Pin{}, fmt.Errorf("go.mod does not name %s", module)
		}
		return pin, nil
	}
	t, err := template.New("build.yaml").Option("missingkey=error").Funcs(template.FuncMap{
		"version": func(module string) (string, error) { pin, err := pinOf(module); return pin.Version, err },
		"path":    func(module string) (string, error) { pin, err := pinOf(module); return pin.Path, err },
		"script": func(name string) (string, error) {
			value, ok := s.names[name]
			if !ok {
				return "", fmt.Errorf("upstream's build scripts do not set %s", name)
			}
			return value, nil
		},
	}).Parse(text)
	if err != nil {
		return "", err
	}
	var value strings.Builder
	err = t.Execute(&value, s.values(date))
	return value.String(), err
}
