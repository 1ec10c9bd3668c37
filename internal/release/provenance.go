package release

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"k3s9p/internal/record"
)

// What a provenance calls itself, who built, and how: docs/release.md explains them.
const (
	predicateType = "https://slsa.dev/provenance/v1"
	builderID     = "urn:k3s9p:mage-release"
	buildType     = "urn:k3s9p:mage-build:v1"
)

// provenance says what the programs of one architecture were made of, as an in-toto
// statement (https://github.com/in-toto/attestation/tree/main/spec/v1) with the
// predicate of SLSA v1 (https://slsa.dev/spec/v1.0/provenance). It holds no times: the
// same sources give the same bytes.
func provenance(s Source, arch string, subjects Sums, build record.Build, components []component) ([]byte, error) {
	statement, err := statementOf(s, arch, subjects, build, components)
	if err != nil {
		return nil, fmt.Errorf("write the provenance: %w", err)
	}
	// protojson puts spaces in at random, so that nobody relies on its bytes.
	data, err := protojson.Marshal(statement)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = json.Indent(&text, data, "", "  ")
	text.WriteByte('\n')
	return text.Bytes(), err
}

func statementOf(s Source, arch string, subjects Sums, build record.Build, components []component) (*intoto.Statement, error) {
	external, err := structOf(map[string]any{"release": s.Version, "distribution": build.Distribution, "platform": "linux/" + arch})
	if err != nil {
		return nil, err
	}
	internal, err := structOf(map[string]any{"dirty": s.Dirty, "toolchain": build.Toolchain, "sets": setsOf(build)})
	if err != nil {
		return nil, err
	}
	predicate := &provenancev1.Provenance{
		BuildDefinition: &provenancev1.BuildDefinition{
			BuildType: buildType, ExternalParameters: external, InternalParameters: internal,
			ResolvedDependencies: dependencies(s.Commit, build, components),
		},
		RunDetails: &provenancev1.RunDetails{Builder: &provenancev1.Builder{Id: builderID}},
	}
	if err := predicate.Validate(); err != nil {
		return nil, err
	}
	data, err := protojson.Marshal(predicate)
	if err != nil {
		return nil, err
	}
	statement := &intoto.Statement{Type: intoto.StatementTypeUri, PredicateType: predicateType, Predicate: new(structpb.Struct)}
	if err := protojson.Unmarshal(data, statement.Predicate); err != nil {
		return nil, err
	}
	for _, name := range subjects.names() {
		statement.Subject = append(statement.Subject, &intoto.ResourceDescriptor{Name: name, Digest: map[string]string{"sha256": subjects[name]}})
	}
	return statement, statement.Validate()
}

// compiled is how a set was compiled. Its modules and patches are dependencies.
type compiled struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	CGO     bool     `json:"cgo"`
	Tags    []string `json:"tags,omitempty"`
	Flags   []string `json:"flags"`
}

func setsOf(build record.Build) []compiled {
	var sets []compiled
	for _, set := range build.Sets {
		sets = append(sets, compiled{set.Name, set.Version, set.CGO, set.Tags, set.Flags})
	}
	return sets
}

// dependencies are the repository, the modules, and the patches in the repository.
func dependencies(commit string, build record.Build, components []component) []*intoto.ResourceDescriptor {
	all := []*intoto.ResourceDescriptor{{Name: "k3s9p", Digest: map[string]string{"gitCommit": commit}}}
	for _, c := range components {
		d := &intoto.ResourceDescriptor{Uri: c.purl}
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(c.sum, "h1:")); err == nil && len(sum) > 0 {
			// dirHash is the h1 of go.sum (in-toto/attestation, spec/v1/digest_set.md).
			d.Digest = map[string]string{"dirHash": hex.EncodeToString(sum)}
		}
		all = append(all, d)
	}
	seen := make(map[string]bool)
	for _, set := range build.Sets {
		for _, patch := range set.Patches {
			if !seen[patch.Digest] {
				seen[patch.Digest] = true
				all = append(all, &intoto.ResourceDescriptor{
					Name: fmt.Sprintf("%s@%s/%s", patch.Module, patch.Version, patch.Name), Digest: map[string]string{"sha256": patch.Digest}})
			}
		}
	}
	return all
}

func structOf(value map[string]any) (*structpb.Struct, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	s := new(structpb.Struct)
	return s, protojson.Unmarshal(data, s)
}

// parseProvenance reads a statement and its predicate, and validates both.
func parseProvenance(data []byte) (*intoto.Statement, *provenancev1.Provenance, error) {
	statement, predicate := new(intoto.Statement), new(provenancev1.Provenance)
	if err := protojson.Unmarshal(data, statement); err != nil {
		return nil, nil, err
	}
	if err := statement.Validate(); err != nil {
		return nil, nil, err
	}
	if statement.PredicateType != predicateType {
		return nil, nil, fmt.Errorf("it is a %q, not a %q", statement.PredicateType, predicateType)
	}
	inner, err := protojson.Marshal(statement.Predicate)
	if err == nil {
		err = protojson.Unmarshal(inner, predicate)
	}
	if err == nil {
		err = predicate.Validate()
	}
	return statement, predicate, err
}

// commitOf is the commit that a provenance names.
func commitOf(p *provenancev1.Provenance) (string, error) {
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		if d.Name == "k3s9p" && d.Digest["gitCommit"] != "" {
			return d.Digest["gitCommit"], nil
		}
	}
	return "", errors.New("it names no commit")
}

// checkProvenance compares a provenance with the programs that it is about. What a
// program was linked with of the system it does not say, so that only the rest is
// compared.
func checkProvenance(data []byte, version, arch string, subjects Sums, build record.Build, components []component) (commit string, err error) {
	there, predicate, err := parseProvenance(data)
	if err != nil {
		return "", err
	}
	if commit, err = commitOf(predicate); err != nil {
		return "", err
	}
	definition := predicate.BuildDefinition
	dirty := definition.InternalParameters.GetFields()["dirty"].GetBoolValue()
	definition.ResolvedDependencies = slices.DeleteFunc(definition.ResolvedDependencies, func(d *intoto.ResourceDescriptor) bool {
		return strings.HasPrefix(d.Uri, systemPURL)
	})
	want, err := statementOf(Source{Version: version, Commit: commit, Dirty: dirty}, arch, subjects, build, components)
	if err != nil {
		return "", err
	}
	if dirty != strings.HasSuffix(version, ".dirty") {
		return "", fmt.Errorf("it says that the files were changed (%v), and the version is %s", dirty, version)
	}
	return commit, compareStatements(there, predicate, want)
}

func compareStatements(there *intoto.Statement, predicate *provenancev1.Provenance, want *intoto.Statement) error {
	inner, err := protojson.Marshal(want.Predicate)
	if err != nil {
		return err
	}
	expected := new(provenancev1.Provenance)
	if err := protojson.Unmarshal(inner, expected); err != nil {
		return err
	}
	for _, same := range []struct {
		what string
		a, b proto.Message
	}{
		{"builder", predicate.RunDetails, expected.RunDetails},
		{"external parameters", predicate.BuildDefinition.ExternalParameters, expected.BuildDefinition.ExternalParameters},
		{"internal parameters", predicate.BuildDefinition.InternalParameters, expected.BuildDefinition.InternalParameters},
	} {
		if !proto.Equal(same.a, same.b) {
			return fmt.Errorf("its %s are %v, and what is in the programs gives %v", same.what, same.a, same.b)
		}
	}
	if predicate.BuildDefinition.BuildType != buildType {
		return fmt.Errorf("its type of build is %q", predicate.BuildDefinition.BuildType)
	}
	if err := compareDescriptors("files", there.Subject, want.Subject); err != nil {
		return err
	}
	return compareDescriptors("sources", predicate.BuildDefinition.ResolvedDependencies, expected.BuildDefinition.ResolvedDependencies)
}

func compareDescriptors(what string, there, want []*intoto.ResourceDescriptor) error {
	in := func(d *intoto.ResourceDescriptor, all []*intoto.ResourceDescriptor) bool {
		return slices.ContainsFunc(all, func(other *intoto.ResourceDescriptor) bool { return proto.Equal(d, other) })
	}
	var wrong []error
	for _, d := range want {
		if !in(d, there) {
			wrong = append(wrong, fmt.Errorf("its %s lack %s%s %v", what, d.Name, d.Uri, d.Digest))
		}
	}
	for _, d := range there {
		if !in(d, want) {
			wrong = append(wrong, fmt.Errorf("its %s have %s%s %v, which is not in the programs", what, d.Name, d.Uri, d.Digest))
		}
	}
	return errors.Join(wrong...)
}
