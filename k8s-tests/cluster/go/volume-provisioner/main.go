// Gives each claim a folder of its own: the provisioner of the cluster's default StorageClass.
//
// The nodes are network namespaces of one machine and see one file system, so a single pod that
// mounts the folder of all volumes can make the folder of a claim for either node. The volume is
// of kind `local` and bound to the node that the scheduler chose (the class must wait for the
// first consumer), because that is how a real local volume behaves: its pod can't move.
//
// The folder belongs to root and is closed to others, as a fresh disk's is. A pod that runs as
// somebody else needs an fsGroup, here as everywhere.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

type folders struct{ root string }

func (f folders) Provision(
	_ context.Context, wish controller.ProvisionOptions,
) (*core.PersistentVolume, controller.ProvisioningState, error) {
	if wish.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished,
			fmt.Errorf("the class %s must have volumeBindingMode WaitForFirstConsumer", wish.StorageClass.Name)
	}
	path := filepath.Join(f.root, wish.PVName)
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: wish.PVName},
		Spec: core.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *wish.StorageClass.ReclaimPolicy,
			AccessModes:                   wish.PVC.Spec.AccessModes,
			VolumeMode:                    wish.PVC.Spec.VolumeMode,
			Capacity: core.ResourceList{
				core.ResourceStorage: wish.PVC.Spec.Resources.Requests[core.ResourceStorage],
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				Local: &core.LocalVolumeSource{Path: path},
			},
			NodeAffinity: onlyOn(wish.SelectedNodeName),
		},
	}
	return volume, controller.ProvisioningFinished, nil
}

func (f folders) Delete(_ context.Context, volume *core.PersistentVolume) error {
	return os.RemoveAll(filepath.Join(f.root, volume.Name))
}

func onlyOn(node string) *core.VolumeNodeAffinity {
	return &core.VolumeNodeAffinity{Required: &core.NodeSelector{
		NodeSelectorTerms: []core.NodeSelectorTerm{{
			MatchExpressions: []core.NodeSelectorRequirement{{
				Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node},
			}},
		}},
	}}
}

func main() {
	root := flag.String("folder", "/volumes", "folder of all volumes, mounted at its path on the host")
	name := flag.String("provisioner", "coffee-rt.dev/folder", "name that the StorageClass gives")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config, err := rest.InClusterConfig()
	if err != nil {
		klog.Fatalf("not in a pod: %v", err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	controller.NewProvisionController(
		ctx, client, *name, folders{root: *root}, controller.LeaderElection(false),
	).Run(ctx)
}
