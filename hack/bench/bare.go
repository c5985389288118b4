package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

// A bare task is a BatchTask by another name: the same schema with the same rules, in a
// group that no webhook and no controller knows. What it costs to write one is what it
// costs at the API server alone.
const (
	bareIs         = "a kind with BatchTask's schema and rules, which no webhook and no controller knows"
	taskDefinition = "config/crd/bases/iot.batchtask.dev_batchtasks.yaml" // from the module's directory
)

var bareKind = schema.GroupVersionKind{Group: "bench.batchtask.dev", Version: v1alpha1.GroupVersion.Version, Kind: "BareTask"}

// newBareClient makes the kind and returns a client for which v1alpha1.BatchTask is it.
func newBareClient(env *localenv.Env) (client.WithWatch, error) {
	crd, err := bareDefinition()
	if err != nil {
		return nil, fmt.Errorf("define bare tasks: %w", err)
	}
	// It waits until the kind is served.
	_, err = envtest.InstallCRDs(env.Config, envtest.CRDInstallOptions{CRDs: []*apiextensionsv1.CustomResourceDefinition{crd}})
	if err != nil {
		return nil, fmt.Errorf("install the kind of bare tasks: %w", err)
	}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypeWithName(bareKind, &v1alpha1.BatchTask{})
	scheme.AddKnownTypeWithName(bareKind.GroupVersion().WithKind(bareKind.Kind+"List"), &v1alpha1.BatchTaskList{})
	metav1.AddToGroupVersion(scheme, bareKind.GroupVersion())
	c, err := client.NewWithWatch(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client for bare tasks: %w", err)
	}
	return c, nil
}

// bareDefinition is that of BatchTask with other names.
func bareDefinition() (*apiextensionsv1.CustomResourceDefinition, error) {
	text, err := os.ReadFile(taskDefinition)
	if err != nil {
		return nil, err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, crd); err != nil {
		return nil, err
	}
	crd.Spec.Group = bareKind.Group
	crd.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{
		Kind: bareKind.Kind, ListKind: bareKind.Kind + "List", Plural: "baretasks", Singular: "baretask",
	}
	crd.Name = crd.Spec.Names.Plural + "." + crd.Spec.Group
	return crd, nil
}

// patchStatus gives a bare task this status with one write.
func patchStatus(ctx context.Context, c client.Client, task *v1alpha1.BatchTask, status *v1alpha1.BatchTaskStatus) error {
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	return c.Status().Patch(ctx, task, client.RawPatch(client.Merge.Type(), patch))
}
