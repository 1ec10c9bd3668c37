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
	for _, series := range s.Series {
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
	values := map[string]string{"Version": s.Version(), "Upstream": s.Pins[s.Config.Module].Version, "Date": date}
	if match := minorVersion.FindStringSubmatch(values["Upstream"]); match != nil {
		values["Major"], values["Minor"] = match[1], match[2]
	}
	var flags []string
	for _, variable := range s.Config.LinkerVariables {
		t, err := template.New(variable.Name).Option("missingkey=error").Parse(variable.Value)
		if err != nil {
			return nil, fmt.Errorf("build/%s/build.yaml: linkerVariables: %w", s.Name, err)
		}
		var value strings.Builder
		if err := t.Execute(&value, values); err != nil {
			return nil, fmt.Errorf("build/%s/build.yaml: linkerVariables: %w", s.Name, err)
		}
		flags = append(flags, "-X", fmt.Sprintf("'%s=%s'", variable.Name, value.String()))
	}
	return flags, nil
}
