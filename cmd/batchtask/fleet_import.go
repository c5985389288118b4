package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/transfer"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
)

// importOptions are the settings of an import.
type importOptions struct {
	file   string
	format string
	dryRun bool
}

func fleetImportCommand(cluster *clusterOptions) *cobra.Command {
	opts := &importOptions{}
	cmd := &cobra.Command{
		Use:   "import PRODUCT [-f FILE]",
		Short: "Add and change devices from a file",
		Long: `Add and change devices of a Product from CSV or NDJSON (one JSON object a line).

CSV begins with a header. The column deviceName must be there; disabled, version,
reported and desired may be. NDJSON has the same keys. A device without disabled is
enabled. A shadow (reported, desired) is replaced by one of a greater version only, and
one without a version is taken for the first.

Lines that are wrong are told, and the others are imported. Nothing is deleted. The same
import made again changes nothing, so one that was interrupted is simply made again.`,
		Example: `  batchtask fleet import door -f devices.csv
  batchtask fleet export door --shadows --format ndjson -n old | batchtask fleet import door -n new`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(opts.format, true); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return runImport(ctx, cmd, cluster, opts, args[0])
		},
	}
	cmd.Flags().StringVarP(&opts.file, "file", "f", "-", "file with devices; - is standard input")
	cmd.Flags().StringVar(&opts.format, "format", "", "csv or ndjson (default what the file looks like)")
	cmd.Flags().BoolVar(&opts.dryRun, "dry-run", false, "check every line, tell what would be done, and write nothing")
	return cmd
}

func checkFormat(format string, empty bool) error {
	if slices.Contains([]string{string(devicefile.CSV), string(devicefile.NDJSON)}, format) || empty && format == "" {
		return nil
	}
	return fmt.Errorf("--format=%s: must be csv or ndjson", format)
}

func runImport(ctx context.Context, cmd *cobra.Command, opts *clusterOptions, o *importOptions, name string) error {
	in, size, err := o.open(cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	c, p, err := opts.openProduct(ctx, name)
	if err != nil {
		return err
	}
	report := newProgress(cmd.ErrOrStderr(), clock.RealClock{}, size)
	if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); ready != nil && ready.Status == metav1.ConditionFalse {
		report.line(fmt.Sprintf("note: Product %q is not ready: %s", name, ready.Message))
	}
	into, end, err := c.fleetOf(ctx, p, !o.dryRun)
	schema, isSchema := errors.AsType[*postgres.SchemaError](err)
	switch {
	case o.dryRun && isSchema && schema.Have == 0: // an import would make the tables
		end = func() {}
	case err != nil:
		return err
	}
	defer end()
	if o.dryRun {
		into = transfer.Check{Fleet: into}
	}
	return o.run(ctx, cmd.OutOrStdout(), in, into, report)
}

// open returns the file and how large it is; 0 where nobody knows.
func (o *importOptions) open(stdin io.Reader) (io.ReadCloser, int64, error) {
	if o.file == "-" {
		if f, ok := stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, 0, errors.New("there is nothing to import: give a file with -f, or write devices to standard input")
		}
		return io.NopCloser(stdin), 0, nil
	}
	file, err := os.Open(o.file)
	if err != nil {
		return nil, 0, fmt.Errorf("-f: %w", err)
	}
	var size int64
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	return file, size, nil
}

func (o *importOptions) run(ctx context.Context, out io.Writer, in io.Reader, into transfer.Fleet, report *progress) error {
	input, stop := pipe(ctx, in)
	defer stop()
	reader, err := devicefile.NewReader(input, devicefile.Format(o.format), clock.RealClock{}.Now())
	var done transfer.Progress
	if err == nil {
		done, err = transfer.Import(ctx, reader, into, report.bad, report.show)
	}
	report.end(done)
	if err != nil {
		return o.broken(ctx, done, err)
	}
	if o.dryRun {
		_, err = fmt.Fprintf(out, "%d would be added, %d updated, %d unchanged, %d bad lines; nothing was written\n", done.Added, done.Updated, done.Unchanged, done.Bad)
	} else {
		_, err = fmt.Fprintln(out, summary(done))
	}
	switch {
	case err != nil:
		return err
	case done.Bad > 0:
		return fmt.Errorf("%d bad lines, see above", done.Bad)
	}
	return nil
}

func summary(p transfer.Progress) string {
	return fmt.Sprintf("%d added, %d updated, %d unchanged, %d bad lines", p.Added, p.Updated, p.Unchanged, p.Bad)
}

// broken says how far an import came that has not come to its end.
func (o *importOptions) broken(ctx context.Context, done transfer.Progress, err error) error {
	if header, ok := errors.AsType[*devicefile.HeaderError](err); ok {
		return fmt.Errorf("-f %s: %w", o.file, header)
	}
	what := "ended early"
	if ctx.Err() != nil {
		what, err = "interrupted", nil
	}
	after := "nothing was written"
	if !o.dryRun {
		after = fmt.Sprintf("all is done up to line %d (%s); the same command again does the rest", done.Line, summary(done))
	}
	if err == nil {
		return fmt.Errorf("%s: %s", what, after)
	}
	return fmt.Errorf("%s: %s: %w", what, after, err)
}

// pipe returns what reads in until ctx ends, also while in has nothing to read. The
// goroutine ends with the read that is under way then: that of standard input may last
// as long as the program.
func pipe(ctx context.Context, in io.Reader) (io.Reader, func()) {
	reader, writer := io.Pipe()
	go func() {
		_, err := io.Copy(writer, in)
		_ = writer.CloseWithError(err)
	}()
	stop := context.AfterFunc(ctx, func() { _ = reader.CloseWithError(context.Cause(ctx)) })
	return reader, func() {
		stop()
		_ = reader.Close()
	}
}
