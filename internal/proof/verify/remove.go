package verify

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"k3s9p/internal/builder"
)

// part is what can be taken out of a copy of the repository.
type part interface {
	fmt.Stringer
	takeOut(ctx context.Context, b *builder.Builder) error
}

// patch is one of the series of a module, by the end of its path and its number.
type patch struct{ module, number string }

func (p patch) String() string { return "patch " + p.module + " " + p.number }

// takeOut adds a patch that takes it back, except for what it changes in tests: these
// have to fail.
func (p patch) takeOut(ctx context.Context, b *builder.Builder) error {
	if _, err := child(ctx, b, distribution, 0, "patch:edit", p.module); err != nil {
		return err
	}
	trees, err := filepath.Glob(b.Work("edit", "*"))
	if err != nil || len(trees) != 1 {
		return fmt.Errorf("%d edit trees are in %s: %w", len(trees), b.Work("edit"), err)
	}
	commits, err := git(ctx, trees[0], "rev-list", "--reverse", "k3s9p-base..HEAD")
	if err != nil {
		return err
	}
	all := strings.Fields(commits)
	number, err := strconv.Atoi(p.number)
	if err != nil || number < 1 || number > len(all) {
		return fmt.Errorf("%s has %d patches, and no patch %s", p.module, len(all), p.number)
	}
	commit := all[number-1]
	back, err := git(ctx, trees[0], "diff", commit, commit+"^", "--", ".", ":(exclude)*_test.go")
	if err != nil {
		return err
	}
	file := b.Work("edit", "back.diff")
	if err := os.WriteFile(file, []byte(back), 0o644); err != nil {
		return err
	}
	if _, err := git(ctx, trees[0], "apply", "--3way", file); err != nil {
		return fmt.Errorf("it cannot be taken out alone: %w", err)
	}
	// The message is the header of the patch, and one like it will do.
	if _, err := git(ctx, trees[0], "commit", "--quiet", "--all", "--reuse-message="+commit); err != nil {
		return err
	}
	_, err = child(ctx, b, distribution, 0, "patch:save", p.module)
	return err
}

// git runs a command of git in a tree, without the user's settings.
func git(ctx context.Context, tree string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "user.name=k3s9p", "-c", "user.email=k3s9p@localhost"}, args...)...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	output, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], tree, err, output)
	}
	return string(output), nil
}

// function is one of a blocker: a field of its composite literal in internal/blocker.
type function struct {
	kind, blocker, field string
	instead              string // the statement that makes it do nothing
}

// takenOut is the evidence of a probe that was taken out.
const takenOut = "it was taken out"

func fix(id string) function { return function{"fix", id, "Decide", "return"} }

func check(id string) function {
	return function{"probe", id, "Check", "return Fine, " + strconv.Quote(takenOut)}
}

func (f function) String() string { return f.kind + " " + f.blocker }

func (f function) takeOut(_ context.Context, b *builder.Builder) error {
	name, at, err := f.find(b.Root)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	edited := string(data[:at]) + "\nif true { " + f.instead + " }\n" + string(data[at:])
	return os.WriteFile(name, []byte(edited), 0o644)
}

// find returns the file of the function, and the offset of its first statement.
func (f function) find(root string) (name string, offset int, err error) {
	files, err := filepath.Glob(filepath.Join(root, "internal", "blocker", "*.go"))
	if err != nil {
		return "", 0, err
	}
	for _, name := range files {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return "", 0, err
		}
		if body := f.in(file); body != nil {
			return name, set.Position(body.Lbrace).Offset + 1, nil
		}
	}
	return "", 0, fmt.Errorf("no blocker %s with a function %s is in internal/blocker", f.blocker, f.field)
}

func (f function) in(file *ast.File) (body *ast.BlockStmt) {
	ast.Inspect(file, func(node ast.Node) bool {
		literal, ok := node.(*ast.CompositeLit)
		if !ok {
			return body == nil
		}
		named := false
		var found *ast.BlockStmt
		for _, element := range literal.Elts {
			pair, ok := element.(*ast.KeyValueExpr)
			if !ok {
				continue
			}
			key, _ := pair.Key.(*ast.Ident)
			if key == nil {
				continue
			}
			switch value := pair.Value.(type) {
			case *ast.BasicLit:
				named = named || key.Name == "ID" && value.Value == strconv.Quote(f.blocker)
			case *ast.FuncLit:
				if key.Name == f.field {
					found = value.Body
				}
			}
		}
		if named && found != nil {
			body = found
		}
		return body == nil
	})
	return body
}
