package localenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Export is a variable of an environment file.
type Export struct {
	// Name is a name that a shell accepts.
	Name string
	// Value is taken as it is, whatever characters it has.
	Value string
	// Prepend puts Value, and a colon, before what the variable holds already.
	Prepend bool
}

// WriteExports writes a file that a POSIX shell reads with ". path". It appears
// with all its content or not at all, and only its owner can read it.
func WriteExports(path string, exports []Export) error {
	var text strings.Builder
	for _, e := range exports {
		fmt.Fprintf(&text, "export %s='%s'", e.Name, strings.ReplaceAll(e.Value, "'", `'\''`))
		if e.Prepend {
			fmt.Fprintf(&text, `:"$%s"`, e.Name)
		}
		text.WriteByte('\n')
	}
	return writeFile(path, []byte(text.String()))
}

// writeFile puts content where path is, in one step.
func writeFile(path string, content []byte) error {
	partial := path + ".partial"
	// Whatever mode a file that was left there has.
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	err := os.WriteFile(partial, content, 0o600)
	if err == nil {
		err = os.Rename(partial, path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
