package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/product"
)

func taskCommand() *cobra.Command {
	opts := &clusterOptions{}
	cmd := &cobra.Command{
		Use:   "task",
		Short: "Look at what has become of tasks",
		Args:  cobra.NoArgs,
	}
	opts.bind(cmd.PersistentFlags())
	cmd.AddCommand(taskResultsCommand(opts))
	return cmd
}

func taskResultsCommand(cluster *clusterOptions) *cobra.Command {
	var output string
	var failed bool
	cmd := &cobra.Command{
		Use:   "results TASK",
		Short: "List the result of each device of a BatchTask, in the order of the names",
		Long: `List the result of each device of a BatchTask, in the order of the names.

They are kept in the database of the task's product. Of a product whose devices are
Kubernetes objects only the first failures are kept, in the status of the task.`,
		Example: `  batchtask task results open-doors --failed -o csv`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, outputTable, outputCSV, outputJSON); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			c, err := cluster.open()
			if err != nil {
				return err
			}
			columns := []string{"DEVICE", "RESULT", "REASON", "MESSAGE", "TIME"}
			if output == outputCSV {
				columns = []string{"deviceName", "result", "reason", "message", "time"}
			}
			r := &resultRows{rows: newRows(cmd.OutOrStdout(), output, columns...), failed: failed}
			return r.rows.finish(r.list(ctx, c, args[0], cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().BoolVar(&failed, "failed", false, "only devices that have failed")
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table, csv, or json: one object a line")
	return cmd
}

// resultRows writes results.
type resultRows struct {
	rows   *rows
	failed bool
}

// result is what became of a device, in JSON.
type result struct {
	Name    string `json:"deviceName"`
	Result  string `json:"result"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	Time    string `json:"time,omitempty"`
}

func (r *resultRows) write(one result) error {
	return r.rows.write(one, one.Name, one.Result, one.Reason, one.Message, one.Time)
}

func (r *resultRows) list(ctx context.Context, c *cluster, name string, notes io.Writer) error {
	var task v1alpha1.BatchTask
	if err := c.get(ctx, "BatchTask", name, &task); err != nil {
		return err
	}
	p, err := product.Finder{Reader: c.client}.Lookup(ctx, task.Namespace, task.Spec.ProductID)
	if err != nil {
		return err
	}
	if p == nil || p.Spec.Fleet.Type != v1alpha1.FleetTypePostgres {
		return r.ofStatus(&task, p, notes)
	}
	if phase := task.Status.Phase; phase == "" || phase == v1alpha1.TaskPhaseWaiting || phase == v1alpha1.TaskPhaseProcessing {
		_, _ = fmt.Fprintf(notes, "note: BatchTask %q has not finished; these are the results so far\n", task.Name)
	}
	store, end, err := c.database(ctx, p, false)
	if err != nil {
		return err
	}
	defer end()
	return store.Results().List(ctx, string(task.UID), r.failed, func(one postgres.Result) error {
		line := result{one.Name, "Succeeded", one.Reason, one.Message, one.At.UTC().Format(time.RFC3339Nano)}
		if one.Failed {
			line.Result = "Failed"
		}
		return r.write(line)
	})
}

// ofStatus writes what is known where results are kept nowhere.
func (r *resultRows) ofStatus(task *v1alpha1.BatchTask, p *v1alpha1.Product, notes io.Writer) error {
	why := "the devices of its product are Kubernetes objects"
	if p == nil {
		why = fmt.Sprintf("there is no Product with the ID %s in namespace %q any more", task.Spec.ProductID, task.Namespace)
	}
	counts := task.Status.Counts()
	_, _ = fmt.Fprintf(notes, "note: of BatchTask %q only the first failures are known, because %s: %d of %d that failed; %d devices succeeded\n",
		task.Name, why, len(task.Status.Failures), counts.Failed, counts.Succeeded)
	for _, f := range task.Status.Failures {
		if err := r.write(result{Name: f.DeviceName, Result: "Failed", Reason: f.Reason, Message: f.Message}); err != nil {
			return err
		}
	}
	return nil
}
